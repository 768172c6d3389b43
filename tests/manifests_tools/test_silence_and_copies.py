"""Silent tracks, copies in both splits and small validation sets: every command says so."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from manifests_tools.__main__ import main
from music_ssl_fairseq import audio
from music_ssl_fairseq.data.copies import find_copies
from music_ssl_fairseq.data.manifest import Manifest, concerns, write_manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.label.__main__ import main as label
from music_ssl_fairseq.label.kmeans import check_distinct
from tests.audio_files import tone, write_tone

RATE = 16_000


def write(path: Path, waveform: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, RATE, subtype="FLOAT")


SILENT = {
    "zeros": np.zeros(2 * RATE),
    "constant": np.full(2 * RATE, 0.25),
    "dither": 3e-5 * np.random.default_rng(0).choice([-1, 0, 1], 2 * RATE),
    "opposite channels": np.tile(tone(2), (1, 2)) * [1, -1],
}


@pytest.fixture
def music(tmp_path):
    """Three albums of two songs; album c begins with a copy of a song of album a."""
    root = tmp_path / "music"
    for i, name in enumerate(["a/0", "a/1", "b/2", "b/3", "c/4"]):
        write_tone(root / f"{name}.wav", 2 + i / 10, seed=i)
    shutil.copy(root / "a/0.wav", root / "c/0.wav")
    return root


def pretrain(root, out, *options):
    command = ["pretrain", "--root", str(root), "--out", str(out), "--workers", "1", *options]
    return main(command)


def names(out):
    splits = [Manifest(out / f"{split}.tsv") for split in ("train", "valid")]
    return [manifest.name(i) for manifest in splits for i in range(len(manifest))]


@pytest.mark.parametrize("thorough", [[], ["--thorough"]])
def test_pretrain_leaves_out_silence_and_copies(music, tmp_path, capsys, thorough):
    for name, waveform in SILENT.items():
        write(music / "b" / f"{name}.wav", waveform)
    quiet_ends = tone(4)
    quiet_ends[: 3 * RATE // 2] = quiet_ends[-RATE:] = 0
    write(music / "b" / "quiet ends.wav", quiet_ends)
    out = tmp_path / "out"
    assert pretrain(music, out, *thorough) == 0
    kept = ["a/0.wav", "a/1.wav", "b/2.wav", "b/3.wav", "b/quiet ends.wav", "c/4.wav"]
    assert sorted(names(out)) == kept
    reasons = dict(line.split("\t") for line in (out / "left_out.tsv").read_text().splitlines())
    assert reasons.pop("c/0.wav") == "a copy of another file: a/0.wav"
    silent = "silent: nothing in it is louder than -80 dB"
    assert reasons == {f"b/{name}.wav": silent for name in SILENT}
    captured = capsys.readouterr()
    assert "left out: 5 (silent 4, a copy of another file 1)" in captured.out
    assert "minutes of music; with less than 10" in captured.err


def test_a_silent_corpus_is_an_error(tmp_path, capsys):
    for i in range(4):
        write(tmp_path / "music" / str(i % 2) / f"{i}.wav", np.zeros(2 * RATE + i))
    assert pretrain(tmp_path / "music", tmp_path / "out") == 1
    assert "no usable files" in (error := capsys.readouterr().err)
    assert "left out: 4 (silent 4)" in error


def test_concerns_about_validation(tmp_path):
    def found(*tracks):
        write_manifest(tmp_path / "valid.tsv", "/music", tracks)
        return concerns(Manifest(tmp_path / "valid.tsv"))

    minute = 60 * RATE
    assert found(("a/x.wav", 6 * minute), ("b/x.wav", 6 * minute)) == []
    (one,) = found(("a/x.wav", 6 * minute), ("a/y.wav", 6 * minute))
    assert "holds a single folder (a)" in one
    (few,) = found(("a/x.wav", 2 * minute), ("b/x.wav", minute))
    assert "holds 3.0 minutes" in few
    assert len(found(("x.wav", minute))) == 2


@pytest.fixture
def old_manifests(music, tmp_path):
    """As an earlier version wrote them: a copy in both splits, and a silent track in train."""
    write(music / "a" / "silent.wav", np.zeros(3 * RATE))
    for split, listed in {
        "train": ["a/0.wav", "a/1.wav", "a/silent.wav", "b/2.wav", "b/3.wav"],
        "valid": ["c/0.wav", "c/4.wav"],
    }.items():
        lines = [(name, audio.probe(music / name).length_at()) for name in listed]
        write_manifest(tmp_path / "manifests" / f"{split}.tsv", music, lines)
    return tmp_path / "manifests"


def test_check_thorough_notices(old_manifests, capsys):
    assert main(["check", str(old_manifests), "--thorough", "--workers", "1"]) == 1
    captured = capsys.readouterr()
    assert "train: a/silent.wav: silent: nothing in it is louder than -80 dB" in captured.out
    assert f"{old_manifests.parent}/music/c/0.wav" in captured.out
    assert "a copy of another file in" in captured.out
    assert captured.out.endswith("2 problems found\n")
    assert "holds a single folder (c)" in captured.err


def test_the_labeler_notices(old_manifests, tmp_path, capsys):
    options = ["--manifests", str(old_manifests), "--labels", str(tmp_path / "labels")]
    for _ in range(2):  # also when it finds that all is done
        assert label(["--k", "8", "--workers", "1", *options]) == 0
        said = capsys.readouterr().err
        assert "warning: train: 1 of 5 tracks are silent" in said
        assert "a/silent.wav" in said
        assert "warning: valid: 1 of 2 tracks are copies of tracks of train" in said
        assert "holds a single folder (c)" in said
        assert "minutes of music; with less than 10" in said


def test_the_labeler_refuses_silence(old_manifests, tmp_path, capsys):
    write_manifest(
        old_manifests / "train.tsv", tmp_path / "music", [("a/silent.wav", 3 * RATE)] * 3
    )
    options = ["--manifests", str(old_manifests), "--labels", str(tmp_path / "labels")]
    assert label(["--k", "8", "--workers", "1", *options]) == 1
    assert "frames sampled are equal: is the music silent?" in capsys.readouterr().err


def test_distinct_frames():
    frames = np.random.default_rng(0).standard_normal((5_000, 39)).astype(np.float32)
    assert check_distinct(frames, 5_000) is None
    assert "only 7 of the 4970 frames sampled are distinct" in check_distinct(
        np.tile(frames[:7], (710, 1)), 8
    )
    assert check_distinct(np.tile(frames[:8], (710, 1)), 8) is None
    with pytest.raises(InputError, match="all 100 frames sampled are equal"):
        check_distinct(np.tile(frames[:1], (100, 1)), 8)


def test_copies_are_found_by_their_bytes(tmp_path):
    contents = {"a": b"1" * 200_000, "b": b"1" * 199_999 + b"2", "c": b"1" * 200_000, "d": b"1"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    a, b, c, d = (str(tmp_path / name) for name in contents)
    assert find_copies([a, b, c, d, str(tmp_path / "gone")]) == {c: a}
    assert find_copies([b, c], others=[a, d]) == {c: a}
    assert find_copies([a, c], others=[b, d]) == {}
    assert find_copies([a, b, c], others=[]) == {}
    assert find_copies([a, b, b]) == {b: b}
    assert find_copies([b, d], others=[a, b]) == {b: b}
