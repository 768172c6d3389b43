"""librosa compiles when it is first imported, and two processes must not do that at once."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from music_ssl_fairseq.runtime import imports
from music_ssl_fairseq.runtime.files import lock


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The file of an installation of our own: other tests may be importing the real one."""
    file = tmp_path / "__init__.py"
    file.touch()
    monkeypatch.setitem(sys.modules, "librosa", SimpleNamespace(__file__=str(file)))
    monkeypatch.delitem(sys.modules, "librosa.beat", raising=False)
    return file


def is_free(file: Path) -> bool:
    with file.open("rb") as handle:
        return lock(handle, wait=False)


def test_others_wait_while_it_is_imported(installed, monkeypatch):
    imported = []

    def import_module(name):
        imported.append((name, is_free(installed)))

    monkeypatch.setattr(imports, "import_module", import_module)
    assert imports.import_librosa() is sys.modules["librosa"]
    assert imported == [("librosa.beat", False)]
    assert is_free(installed)


def test_an_installation_that_may_only_be_read_is_locked_too(installed, monkeypatch):
    modes = []

    def opens(path, mode):
        modes.append(mode)
        if mode == "r+b":
            raise PermissionError(path)
        return found(path, mode)

    found = Path.open
    monkeypatch.setattr(Path, "open", opens)
    with imports._shared_file(installed) as handle:
        assert lock(handle, wait=False)
        assert not is_free(installed)
    assert modes[:2] == ["r+b", "rb"]
