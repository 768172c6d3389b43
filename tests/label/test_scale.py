"""Shards, memory, kills and full disks: what a run on a large corpus meets."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from music_ssl_fairseq.data.manifest import write_manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.jobs import shards
from music_ssl_fairseq.jobs.checkpoint_dir import CheckpointDir
from music_ssl_fairseq.jobs.shards import Shard, choose_shard, cut_blocks
from music_ssl_fairseq.label import memory
from music_ssl_fairseq.label.__main__ import main
from tests.audio_files import write_tone

SECONDS = [3.0, 2.0, 4.0, 1.0, 3.0, 2.5]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with `manifests/` of six short tracks, and `whole/`, the labels of one calm run."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for i, seconds in enumerate(SECONDS):
        write_tone(folder / "music" / f"{i}.wav", seconds, seed=i)
        lines.append((f"{i}.wav", round(seconds * 16_000)))
    write_manifest(folder / "manifests" / "train.tsv", folder / "music", lines)
    write_manifest(folder / "manifests" / "valid.tsv", folder / "music", lines[:2])
    assert main(command(folder, folder / "whole")) == 0
    return folder


def command(corpus: Path, labels: Path, *options: str) -> list[str]:
    return [
        *("--manifests", str(corpus / "manifests"), "--labels", str(labels)),
        *("--k", "12", "--workers", "1", *options),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(shards, "_BLOCK_SECONDS", 2)


def test_blocks_are_all_tracks_in_order():
    num_samples = np.random.default_rng(0).integers(0, 16_000 * 900, 500)
    found = cut_blocks(num_samples)
    assert [i for block in found for i in block] == list(range(500))
    seconds = [num_samples[block.start : block.stop].sum() / 16_000 for block in found]
    # As many as a block has begins of tracks in it, so up to a track longer than a block.
    assert max(seconds) < 300 + 900
    assert 300 < np.mean(seconds) < 900
    assert cut_blocks(np.array([5])) == [range(0, 1)]


def test_blocks_are_never_too_many():
    assert len(cut_blocks(np.full(30_000, 16_000 * 3600))) <= 4001


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Shard(0, 1)),
        ({"SLURM_ARRAY_TASK_ID": "3"}, Shard(0, 1)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "5",
            },
            Shard(2, 4),
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "20",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_STEP": "10",
            },
            Shard(2, 3),
        ),
    ],
)
def test_shard_of_a_slurm_array(environment, expected):
    assert choose_shard(None, None, environment) == expected


def test_shards_that_make_no_sense():
    array = {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "2"}
    with pytest.raises(InputError, match="array without gaps"):
        choose_shard(None, None, array)
    with pytest.raises(InputError, match="belong together"):
        choose_shard(1, None, {})
    with pytest.raises(InputError, match="from 0 to 1"):
        choose_shard(2, 2, {})
    assert choose_shard(0, 2, array) == Shard(0, 2)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_shards_one_after_the_other(corpus, tmp_path, small_blocks, order, capsys):
    for index in order:
        shard = ("--num-shards", "3", "--shard", str(index))
        assert main(command(corpus, tmp_path / "labels", *shard)) == 0
        said = capsys.readouterr().out
        assert ("next: " in said) == (index == order[-1])
    assert contents(tmp_path / "labels") == contents(corpus / "whole")


def test_a_slurm_array_is_picked_up(corpus, tmp_path, small_blocks, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for index in (0, 1):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
        assert not (tmp_path / "labels" / "train.km").exists()
        assert main(command(corpus, tmp_path / "labels")) == 0
    assert contents(tmp_path / "labels") == contents(corpus / "whole")


def test_stages_alone(corpus, tmp_path, capsys):
    labels = tmp_path / "labels"
    assert main(command(corpus, labels, "--stage", "assign")) == 1
    assert "run --stage fit first" in capsys.readouterr().err
    assert main(command(corpus, labels, "--stage", "fit")) == 0
    assert not (labels / "train.km").exists()
    assert main(command(corpus, labels, "--stage", "fit")) == 0
    assert "fitted already" in capsys.readouterr().out
    assert main(command(corpus, labels, "--stage", "assign")) == 0
    assert contents(labels) == contents(corpus / "whole")


def test_shards_do_not_force(corpus, tmp_path, capsys):
    shard = ("--num-shards", "2", "--shard", "0", "--force")
    assert main(command(corpus, tmp_path, *shard)) == 1
    assert "shards would undo each other's work" in capsys.readouterr().err


def run(arguments: list[str], **options) -> subprocess.Popen:
    line = [sys.executable, "-m", "music_ssl_fairseq.label", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, stderr=subprocess.PIPE, env=environment, text=True, **options)


def test_killed_and_taken_up(corpus, tmp_path):
    labels = tmp_path / "labels"
    for after in (".work-*/sample-*.npz", "centroids.npy"):
        process = run(command(corpus, labels), stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not list(labels.glob(after)):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert main(command(corpus, labels)) == 0
    assert contents(labels) == contents(corpus / "whole")


def test_what_a_killed_run_was_writing_is_swept_up(corpus, tmp_path):
    labels = tmp_path / "labels"
    assert main(command(corpus, labels, "--stage", "fit")) == 0
    (labels / ".0123456789abcdef.77.tmp.km").write_text("1 2")
    assert main(command(corpus, labels)) == 0
    assert contents(labels) == contents(corpus / "whole")


FILES = ("train.km", "train.units.npy", "valid.offsets.npy", "dict.km.txt")


@pytest.mark.parametrize("how", ["cut", "zeros", "gone"])
def test_damaged_labels_are_made_again(corpus, tmp_path, capsys, how):
    labels = tmp_path / "labels"
    for name in FILES:
        shutil.copytree(corpus / "whole", labels, dirs_exist_ok=True)
        whole = (labels / name).read_bytes()
        if how == "gone":
            (labels / name).unlink()
        else:
            half = len(whole) // 2
            (labels / name).write_bytes(whole[:half] + bytes(half) * (how == "zeros"))
        capsys.readouterr()
        assert main(command(corpus, labels)) == 0
        if name == "dict.km.txt":
            assert "finished already" in capsys.readouterr().out
        elif (name, how) != ("train.km", "gone"):
            assert f"{labels / name}: missing, damaged or changed" in capsys.readouterr().err
        assert contents(labels) == contents(corpus / "whole")


def stop_before_joining(corpus, labels, stage, monkeypatch):
    """Leave the blocks of a run that stopped; without centroids if the stage is "sample"."""
    with monkeypatch.context() as patch:
        patch.setattr("music_ssl_fairseq.label.assign_stage.join", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(command(corpus, labels))
    if stage == "sample":
        (labels / "centroids.npy").unlink()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"text" * 99])
@pytest.mark.parametrize("stage", ["sample", "train"])
def test_damaged_blocks_are_computed_again(
    corpus, tmp_path, small_blocks, capsys, monkeypatch, stage, content
):
    """Of a run that stopped before its labels were joined."""
    labels = tmp_path / "labels"
    stop_before_joining(corpus, labels, stage, monkeypatch)
    first, *others = sorted(labels.glob(f".work-*/{stage}-*.npz"))
    fit = next(iter(labels.glob(".work-*/fit-*.npz")))
    for file in (first, fit) if stage == "sample" else (first,):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    before = [file.stat().st_mtime_ns for file in others]
    capsys.readouterr()
    with monkeypatch.context() as patch:  # to see which blocks are done again
        patch.setattr(CheckpointDir, "remove", lambda self: None)
        assert main(command(corpus, labels)) == 0
    assert f"{first}: damaged; what was in it is computed again" in capsys.readouterr().err
    assert [file.stat().st_mtime_ns for file in others] == before
    shutil.rmtree(next(iter(labels.glob(".work-*"))))
    assert contents(labels) == contents(corpus / "whole")


def test_a_block_that_is_damaged_meanwhile_is_one_line(tmp_path, capsys):
    work = CheckpointDir(tmp_path)
    for content in (b"", b"text"):
        for load in (work.load_block, work.load_lengths):
            work.block("x", 0).write_bytes(content)
            with pytest.raises(InputError, match=r"x-00000\.npz: damaged, now removed"):
                load("x", 0)
            assert not work.block("x", 0).exists()
    work.save_arrays(work.block("x", 0), other=np.zeros(3))
    work.remove_outdated("x", 1, lambda _: "")
    assert work.missing("x", 1) == [0]


@pytest.mark.parametrize("stage", ["sample", "train"])
def test_blocks_of_audio_that_was_replaced_are_made_again(
    corpus, tmp_path, small_blocks, capsys, monkeypatch, stage
):
    """Of a run that stopped, perhaps another shard's; the new file is as long as the old one."""
    labels, replaced = tmp_path / "labels", corpus / "music" / "3.wav"
    stop_before_joining(corpus, labels, stage, monkeypatch)
    before = replaced.read_bytes()
    try:
        write_tone(replaced, SECONDS[3], seed=9)
        assert main(command(corpus, labels)) == 0
        assert main(command(corpus, tmp_path / "new", "--force")) == 0
    finally:
        replaced.write_bytes(before)
    said = capsys.readouterr().err
    assert "1 blocks of tracks are outdated, as audio files have been replaced" in said
    warned = "train.tsv: its audio files have been replaced since" in said
    assert warned == (stage == "train")  # the centroids are the old ones
    new, whole = (read(f, "train.km").splitlines() for f in (tmp_path / "new", corpus / "whole"))
    if stage == "sample":
        assert contents(labels) == contents(tmp_path / "new")
    else:
        found = read(labels, "train.km").splitlines()
        assert [i for i in range(6) if found[i] != whole[i]] == [3]
        assert new != whole


def read(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", "[" * 100_000, '{"splits": 3}', '{"splits": {"train": 1}}']
)
def test_damaged_metadata_is_one_line(corpus, tmp_path, capsys, text):
    shutil.copytree(corpus / "whole", tmp_path, dirs_exist_ok=True)
    (tmp_path / "metadata.json").write_text(text)
    assert main(command(corpus, tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'metadata.json'}: ")
    assert "--labels writes elsewhere; --force would replace them\nhead -n 3 " in error
    assert len(error) < 1_000


def test_two_at_once_share_the_work(corpus, tmp_path, small_blocks, monkeypatch):
    """Another process holds a block: this one does the others, waits, and then does it."""
    work = CheckpointDir(tmp_path)
    release = work.claim("x-00001")
    assert release is not None
    assert work.claim("x-00001") is None
    assert work.claim("x-00002") is not None
    held, busy = deque(), []
    assert list(work.claim_blocks("x", [0, 1], held, busy)) == [0]
    assert ([number for number, _ in held], busy) == ([0], [1])
    release()
    assert list(work.claim_blocks("x", [1], held, busy)) == [1]


def test_a_full_disk(corpus, tmp_path):
    """A limit on the size of files, which is what a process can be given of a full disk."""
    labels = tmp_path / "labels"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    process = run(command(corpus, labels), stdout=subprocess.DEVNULL, preexec_fn=limit)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.splitlines()[-2].startswith("error: ")
    assert errors.splitlines()[-1] == f"df -h {tmp_path}"
    assert "Traceback" not in errors
    assert not list(labels.glob("*.km"))
    assert main(command(corpus, labels)) == 0
    assert contents(labels) == contents(corpus / "whole")


def test_sizes():
    assert memory.parse_size("4G") == 4 << 30
    assert memory.parse_size("512MiB") == 512 << 20
    assert memory.parse_size("1.5 g") == 3 << 29
    assert memory.parse_size("1000") == 1000
    for wrong in ("", "G", "4X", "-1G", "0"):
        with pytest.raises(ArgumentTypeError, match="is not a size"):
            memory.parse_size(wrong)


def test_memory_bounds_frames_and_workers(corpus, tmp_path, capsys):
    assert memory.check_frames(None, 1_000_000, 4 << 30, 39, 500) == 1_000_000
    deep = memory.check_frames(None, 1_000_000, 2 << 30, 768, 500)
    assert deep * 768 * 4 < 2 << 30
    with pytest.raises(InputError, match=r"do not fit --memory 2\.0 GB.*--minibatch"):
        memory.check_frames(1_000_000, 1_000_000, 2 << 30, 768, 500)
    assert memory.workers_that_fit(4 << 30, 200) < 200
    model = memory.model_size(str(corpus / "music"))
    assert model > 700 << 20
    assert memory.model_size(None) == 0
    assert memory.workers_that_fit(4 << 30, 200, model) <= 4
    assert memory.check_frames(None, 1_000_000, 2 << 30, 768, 500, model) < deep
    with pytest.raises(InputError, match="too little: one worker"):
        memory.workers_that_fit(500 << 20, 2)
    assert main(command(corpus, tmp_path / "labels", "--memory", "100M")) == 1
    refusal = capsys.readouterr().err
    assert "100 MB" in refusal
    assert "--memory 1G" in refusal.splitlines()[-1]


def test_default_memory_holds_a_worker_with_a_base_model(tmp_path):
    checkpoint = tmp_path / "checkpoint_last.pt"
    with open(checkpoint, "wb") as file:
        file.truncate(3 << 29)  # music2vec's weights, teacher and optimizer
    model = memory.model_size(str(checkpoint))
    bound = memory.memory_bound(None, model)
    assert memory.workers_that_fit(bound, 16, model) >= 1
    assert memory.check_frames(None, 1_000_000, bound, 768, 500, model) == 1_000_000
    assert memory.memory_bound(1 << 30, model) == 1 << 30
    assert memory.memory_bound(None, memory.model_size(None)) == 4 << 30
