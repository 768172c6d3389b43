"""Pages name files that exist."""

import re

import pytest

from tests import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
TOPS = "music_ssl_fairseq|manifests_tools|hydra_plugins|tests|examples|docs|\\.ci"
# Not tests, which are in FILE; nor placeholders, nor fairseq's own examples.
PATH = re.compile(rf"`(?!examples/data2vec|[\w./]*(?:test_|NAME))((?:{TOPS})/[\w./-]*)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
# A file of the repository, of the package, or a test.
FILE = re.compile(r"`((?:[a-z_]+/)+[a-z0-9_]+\.py|test_[a-z0-9_]+\.py)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_links_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = [ROOT / path for path in PATH.findall(text)]
    paths += [page.parent / link for link in LINK.findall(text)]
    missing = [str(path) for path in paths if not path.exists()]
    places = [ROOT, ROOT / "music_ssl_fairseq", ROOT / "tests", page.parent]
    missing += [f for f in FILE.findall(text) if not any((where / f).exists() for where in places)]
    assert missing == []
