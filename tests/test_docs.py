"""Pages name files that exist, and the README's lines run."""

import re

import pytest

from music_ssl_fairseq.data.manifest import write_manifest
from tests import ROOT, checkpoints, tiny
from tests.audio_files import write_tone

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
TOPS = "music_ssl_fairseq|manifests_tools|hydra_plugins|tests|examples|docs|\\.ci"
# Not tests, which are in FILE; nor placeholders, nor fairseq's own examples.
PATH = re.compile(rf"`(?!examples/data2vec|[\w./]*(?:test_|NAME))((?:{TOPS})/[\w./-]*)`")
LINK = re.compile(r"(?:\]\(|<img src=\")([^)#:\"]+)(?:#[^)]*)?[)\"]")
FOLDER = re.compile(r"`((?:[a-z_]+/)+)`")  # on pages that name no folders of data
# A file of the repository, of the package, or a test.
FILE = re.compile(r"`((?:[a-z_]+/)+[a-z0-9_]+\.py|test_[a-z0-9_]+\.py)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_links_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = [ROOT / path for path in PATH.findall(text)]
    paths += [page.parent / link for link in LINK.findall(text)]
    missing = [str(path) for path in paths if not path.exists()]
    places = [ROOT, ROOT / "music_ssl_fairseq", ROOT / "tests", page.parent]
    code = FILE.findall(text)
    if page.stem in ("deviations", "CONTRIBUTING", "reliability"):
        code += FOLDER.findall(text)
    missing += [f for f in code if not any((where / f).exists() for where in places)]
    assert missing == []


def test_the_readmes_python_runs_as_pasted(tmp_path, monkeypatch):
    """In the folder of a quickstart on music that lies elsewhere."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    songs = [(f"a/{i}.ogg", 16_000) for i in range(4)]
    for name, _ in songs:
        write_tone(tmp_path / "music" / name, 1.0, 44_100)
    write_manifest(tmp_path / "quickstart/manifests/train.tsv", tmp_path / "music", songs)
    path = tmp_path / "quickstart/runs/tiny/music_hubert/checkpoints/checkpoint_best.pt"
    path.parent.mkdir(parents=True)
    checkpoints.write(path, "music_hubert", tiny.music_hubert())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert names["features"].layers.shape == (4, 49, 32)
    assert names["vectors"].shape == (3, 32)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_begins_with_its_purpose_and_its_contents(page):
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    title, purpose, contents = text.split("\n\n")[:3]
    assert title.startswith("# ")
    assert purpose[0].isalpha()
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    listed = re.findall(r"\]\(#([^)]+)\)", contents)
    assert listed == [re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in sections]
