"""One folder, one process: whoever holds the lock is named, and a killed one holds nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from music_ssl_fairseq.data.audio_identity import audio_digest
from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import hold, let_go, require_writable, write_json
from music_ssl_fairseq.runtime.texts import read_json
from music_ssl_fairseq.runtime.unpickling import check_form

HOLDER = """
import os, sys, time
from music_ssl_fairseq.runtime.files import hold
handle = hold(sys.argv[1], "trains", "wait")
if not os.fork():  # as a data loader's worker, which may outlive its parent for a while
    print("held", flush=True)
time.sleep(30)
"""


def held(file: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_named_and_a_killed_one_holds_nothing(tmp_path):
    file = tmp_path / "run" / "training.lock"
    process = held(file)
    try:
        with pytest.raises(InputError) as refused:
            hold(file, "trains", "give another folder")
        message = str(refused.value)
        assert message.startswith(f"{file.parent}: process {process.pid} on ")
        assert message.endswith("trains here already; give another folder")
        process.kill()  # not its child
        process.wait()
        hold(file, "trains", "").close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_lock_is_given_back_with_its_handle(tmp_path):
    file = tmp_path / "training.lock"
    handle = hold(file, "trains", "")
    with pytest.raises(InputError, match=f"process {os.getpid()} "):
        hold(file, "trains", "")
    handle.close()
    with hold(file, "trains", ""):
        pass


def test_who_waited_for_a_file_that_was_removed_makes_it_again(tmp_path, monkeypatch):
    """Two processes must not hold two files of one name."""
    from music_ssl_fairseq.runtime import files

    file, lock = tmp_path / "x.lock", files.lock

    def removed_meanwhile(handle, wait):
        monkeypatch.setattr(files, "lock", lock)
        file.unlink()
        return lock(handle, wait)

    monkeypatch.setattr(files, "lock", removed_meanwhile)
    handle = hold(file, "trains", "")
    with pytest.raises(InputError, match=f"process {os.getpid()} "):
        hold(file, "trains", "")
    let_go(file, handle)
    assert not file.exists()


def test_names_that_are_no_utf8_are_noted_as_text(tmp_path):
    name = os.fsdecode(b"b\xffd \xc3\xa9")
    write_json(tmp_path / "about.json", {"source": name})
    assert read_json(tmp_path / "about.json") == {"source": r"b\udcffd é"}


def test_a_folder_that_cannot_be_written_is_named_before_the_work(tmp_path, monkeypatch):
    require_writable(tmp_path / "a" / "b", "--out")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="b: Not a directory; give --out another folder"):
        require_writable(tmp_path / "file" / "b", "--out")
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path))
    with pytest.raises(InputError, match="b: not writable; give --out another folder"):
        require_writable(tmp_path / "a" / "b", "--out")


def test_no_pipe_is_waited_for(tmp_path):
    def stop(*_: object) -> None:
        raise AssertionError("waits for a writer")

    os.mkfifo(tmp_path / "pipe")
    write_manifest(tmp_path / "train.tsv", tmp_path, [("pipe", 16_000)])
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(5)
    try:
        assert audio_digest(Manifest(tmp_path / "train.tsv"), range(1)) is None
        with pytest.raises(InputError, match="not a regular file"):
            check_form(tmp_path / "pipe")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
