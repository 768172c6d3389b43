"""Compiled kernels are kept in the user's cache, unless the user or the disk says otherwise."""

import os

import pytest
from torch._inductor.runtime.cache_dir_utils import cache_dir

from music_ssl_fairseq.fast.device import has_triton, keep_kernels

NAMES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in (*NAMES, "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "x")  # so that what is set here is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def found():
    return [os.environ.get(name) for name in NAMES]


def test_kernels_are_kept_in_the_user_s_cache(home, monkeypatch):
    has_triton.__wrapped__()
    folder = home / ".cache" / "music_ssl_fairseq"
    assert found() == [str(folder / "inductor"), str(folder / "triton")]
    assert cache_dir() == str(folder / "inductor")
    for name in NAMES:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "scratch"))
    keep_kernels()
    assert found()[1] == str(home / "scratch" / "music_ssl_fairseq" / "triton")


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    keep_kernels()
    assert found()[1] == "mine"


@pytest.mark.parametrize("home_is", ["a file", "no user", "relative"])
def test_where_nothing_can_be_written_the_defaults_stay(home, monkeypatch, home_is):
    if home_is == "a file":
        (home / ".cache").touch()
    elif home_is == "relative":
        monkeypatch.chdir(home)
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    else:
        monkeypatch.setenv("HOME", "/nonexistent/of/nobody")
        monkeypatch.setattr("pathlib.Path.mkdir", _refuse)
    keep_kernels()
    assert found() == [None, None]


def _refuse(path, **kwargs):
    raise PermissionError(13, "Permission denied", str(path))
