"""librosa compiles when it is first imported, and two processes must not do that at once."""

import sys
from pathlib import Path

import librosa

from music_ssl_fairseq import librosa_import
from music_ssl_fairseq.files import lock


def is_free() -> bool:
    with Path(librosa.__file__).open("rb") as handle:
        return lock(handle, wait=False)


def test_others_wait_while_it_is_imported(monkeypatch):
    imported = []

    def import_module(name):
        imported.append((name, is_free()))

    monkeypatch.delitem(sys.modules, "librosa.beat", raising=False)
    monkeypatch.setattr(librosa_import, "import_module", import_module)
    assert librosa_import.import_librosa() is librosa
    assert imported == [("librosa.beat", False)]
    assert is_free()


def test_an_installation_that_may_only_be_read_is_locked_too(monkeypatch):
    opened = []

    def opens(path, mode):
        opened.append(mode)
        if mode == "r+b":
            raise PermissionError(path)
        return found(path, mode)

    found = Path.open
    monkeypatch.setattr(Path, "open", opens)
    with librosa_import._own_file() as handle:
        assert lock(handle, wait=False)
        assert not is_free()
    assert opened[:2] == ["r+b", "rb"]
