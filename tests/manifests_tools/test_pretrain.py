"""`python -m manifests_tools pretrain`, from folders of real files to manifests."""

import errno
import os
import subprocess
import sys
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from manifests_tools import pretrain
from manifests_tools.__main__ import main
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from tests import ROOT
from tests.audio_files import tone, write_tone
from tests.options import with_defaults

run = with_defaults(pretrain)


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Two artists of two albums of two songs, of five formats and six rates."""
    root = tmp_path / "music"
    songs = {
        "A/1/a.wav": (16_000, 1), "A/1/b.flac": (44_100, 2), "A/2/c.ogg": (8_000, 1),
        "A/2/d.opus": (48_000, 2), "B/3/e.mp3": (44_100, 1), "B/3/f.wav": (22_050, 3),
        "B/4/g g.flac": (96_000, 1), "B/4/h.wav": (16_000, 2),
    }  # fmt: skip
    for i, (name, (rate, channels)) in enumerate(songs.items()):
        write_tone(root / name, 1.2 + 0.1 * i, rate, channels, seed=i)
    return root


def names(folder: Path, split: str) -> list[str]:
    manifest = Manifest(folder / f"{split}.tsv")
    return [manifest.name(i) for i in range(len(manifest))]


def left_out(folder: Path) -> dict[str, str]:
    lines = os.fsdecode((folder / "left_out.tsv").read_bytes()).split("\n")[:-1]
    return dict(line.split("\t") for line in lines)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_every_track_is_in_one_split_with_its_length_at_16_khz(music, tmp_path):
    run(str(music), str(tmp_path / "out"))
    found = {}
    for split in ("train", "valid"):
        manifest = Manifest(tmp_path / "out" / f"{split}.tsv")
        assert manifest.root == str(music)
        assert names(tmp_path / "out", split) == sorted(names(tmp_path / "out", split))
        for i in range(len(manifest)):
            assert manifest.name(i) not in found
            found[manifest.name(i)] = int(manifest.num_samples[i])
    expected = {}
    for path in music.rglob("*.*"):
        info = soundfile.info(path)
        expected[str(path.relative_to(music))] = ceil(info.frames * 16_000 / info.samplerate)
    assert found == expected
    assert contents(tmp_path / "out")["left_out.tsv"] == b""


@pytest.mark.parametrize(("group_by", "level"), [("folder", "*/*"), (1, "*"), ("file", "*/*/*")])
def test_a_group_is_on_one_side(music, tmp_path, group_by, level):
    run(str(music), str(tmp_path / "out"), valid_share=0.3, group_by=group_by)
    train, valid = (set(names(tmp_path / "out", split)) for split in ("train", "valid"))
    for group in music.glob(level):
        files = [group] if group.is_file() else group.rglob("*.*")
        members = {str(file.relative_to(music)) for file in files}
        assert members <= train or members <= valid


def test_the_same_folder_gives_the_same_manifests_whatever_the_workers(music, tmp_path):
    (music / "A" / "1" / "broken.wav").write_bytes(b"not audio")
    outputs = []
    for workers in (1, 2, 3):
        run(str(music), str(tmp_path / "out"), workers=workers, force=True)
        outputs.append(contents(tmp_path / "out"))
    assert outputs[0] == outputs[1] == outputs[2]
    assert set(outputs[0]) == {"train.tsv", "valid.tsv", "left_out.tsv"}


def test_what_cannot_be_used_is_left_out_and_named_with_its_reason(music, tmp_path, capsys):
    bad = music / "bad é 音"
    bad.mkdir()
    (bad / "empty.mp3").touch()
    (bad / "text.wav").write_text("a text file with another suffix")
    noise = np.random.default_rng(0).normal(0, 0.1, 30_000).astype(np.float32)
    soundfile.write(bad / "whole.flac", noise, 16_000)
    whole = (bad / "whole.flac").read_bytes()
    (bad / "cut.flac").write_bytes(whole[: len(whole) * 2 // 3])
    streamed = bytearray(whole)
    streamed[21] &= 0xF0  # 36 bits of the STREAMINFO block hold the number of samples: 0, unknown
    streamed[22:26] = bytes(4)
    (bad / "streamed.flac").write_bytes(streamed)
    soundfile.write(bad / "nan.wav", np.full(30_000, np.nan), 16_000, "FLOAT")
    soundfile.write(bad / "none.wav", np.zeros(0), 16_000)
    write_tone(bad / "short.wav", 0.5)
    write_tone(bad / "just.wav", 1.0)
    write_tone(bad / os.fsdecode(b"caf\xe9.wav"), 1.5)
    (bad / os.fsdecode(b"bad\xff\t.wav")).write_bytes(b"")
    run(str(music), str(tmp_path / "out"), workers=2)
    listed = names(tmp_path / "out", "train") + names(tmp_path / "out", "valid")
    undecodable = os.fsdecode(b"caf\xe9.wav")
    assert {name for name in listed if name.startswith("bad")} == {
        f"bad é 音/{name}" for name in ("whole.flac", "streamed.flac", "just.wav", undecodable)
    }
    reasons = left_out(tmp_path / "out")
    assert list(reasons) == sorted(reasons, key=os.fsencode)
    starts = {
        "empty.mp3": "the file is empty (0 bytes)",
        "text.wav": "not readable as audio (",
        "cut.flac": "damaged or truncated (",
        "nan.wav": "holds NaN or infinite samples",
        "none.wav": "too short: 0.000 s",
        "short.wav": "too short: 0.500 s, at least 1 s are needed",
        os.fsdecode(b"bad\xff\\t.wav"): "a tab or line break in its name",
    }
    assert set(reasons) == {f"bad é 音/{name}" for name in starts}
    for name, start in starts.items():
        assert reasons[f"bad é 音/{name}"].startswith(start)
    summary = capsys.readouterr().out
    assert "left out: 7 (too short 2, a tab or line break in its name 1" in summary
    assert str(tmp_path / "out" / "left_out.tsv") in summary


def test_lines_are_sorted_by_name_not_by_group(tmp_path):
    for name in ("a/a.wav", "a/b/x.wav", "a/c.wav", "z/z.wav"):
        write_tone(tmp_path / "music" / name, 10.0 if name == "z/z.wav" else 1.0)
    for seed in range(5):
        run(str(tmp_path / "music"), str(tmp_path / "out"), 0.99, seed=seed, force=True)
        for split in ("train", "valid"):
            assert names(tmp_path / "out", split) == sorted(names(tmp_path / "out", split))


def test_damage_in_the_middle_is_found_by_thorough(music, tmp_path):
    waveform = tone(3.0)
    waveform[24_000] = np.inf
    soundfile.write(music / "A" / "1" / "hole.wav", waveform, 16_000, "FLOAT")
    run(str(music), str(tmp_path / "quick"))
    run(str(music), str(tmp_path / "slow"), thorough=True)
    assert left_out(tmp_path / "quick") == {}
    assert left_out(tmp_path / "slow") == {"A/1/hole.wav": "holds NaN or infinite samples"}


def test_min_seconds(music, tmp_path):
    run(str(music), str(tmp_path / "out"), min_seconds=1.55)
    kept = names(tmp_path / "out", "train") + names(tmp_path / "out", "valid")
    assert sorted(kept) == ["B/3/e.mp3", "B/3/f.wav", "B/4/g g.flac", "B/4/h.wav"]


def test_one_folder_is_split_by_file_with_a_warning(music, tmp_path, capsys):
    run(str(music / "A" / "1"), str(tmp_path / "out"))
    assert len(names(tmp_path / "out", "train")) == len(names(tmp_path / "out", "valid")) == 1
    printed = capsys.readouterr()
    assert "warning: --group-by folder puts all files into one group" in printed.err
    assert printed.out.splitlines()[0].startswith("train: 1 track, ")
    assert "1 folder" not in printed.out


def test_the_summary_counts_and_tells_the_next_command(music, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("music", valid_share=0.2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 6 tracks, 9.1 s, 3 folders"
    assert lines[1] == "valid: 2 tracks, 3.3 s, 1 folder"
    assert lines[2] == (
        "sample rates: 8000 Hz 1, 16000 Hz 2, 22050 Hz 1, 44100 Hz 2, 48000 Hz 1, 96000 Hz 1"
    )
    assert lines[3:] == ["left out: none", "next: python -m music_ssl_fairseq label --k 22"]
    run("music", "else where")
    paths = "--manifests 'else where' --labels 'else where_labels'"
    assert capsys.readouterr().out.endswith(f"--k 24 {paths}\n")


def test_existing_manifests_are_replaced_only_by_force(music, tmp_path):
    out = tmp_path / "out"
    run(str(music), str(out))
    before = contents(out)
    with pytest.raises(InputError, match=r"train\.tsv and valid\.tsv exist already; --out"):
        run(str(music), str(out), seed=1)
    assert contents(out) == before
    run(str(music), str(out), valid_share=0.5, seed=1, force=True)
    assert contents(out) != before


def test_a_full_disk_leaves_both_manifests_as_they_were(music, tmp_path, monkeypatch):
    """Of train and valid, one alone would share tracks with the other."""
    out = tmp_path / "out"
    run(str(music), str(out))
    before = contents(out)
    write, written = pretrain.write_manifest, []

    def full(file, *rest):
        written.append(file)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, *rest)

    monkeypatch.setattr(pretrain, "write_manifest", full)
    with pytest.raises(OSError, match="No space left"):
        run(str(music), str(out), valid_share=0.5, seed=1, force=True)
    assert len(written) == 2
    assert contents(out) == before


@pytest.mark.parametrize("usable", [0, 1])
def test_too_few_usable_files_is_one_line_that_tells_why(tmp_path, usable):
    for i in range(usable):
        write_tone(tmp_path / "music" / f"{i}.wav", 1.5)
    write_tone(tmp_path / "music" / "short.wav", 0.1)
    expected = rf"{usable or 'no'} usable file.*left out: 1 \(too short 1\), see .*left_out\.tsv"
    with pytest.raises(InputError, match=expected):
        run(str(tmp_path / "music"), str(tmp_path / "out"))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["left_out.tsv"]


@pytest.mark.parametrize(
    "arguments",
    [["--valid-share", "0"], ["--valid-share", "1"], ["--group-by", "0"], ["--group-by", "album"]],
)
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(SystemExit):
        pretrain.get_parser().parse_args(["--root", "x", *arguments])


def test_errors_of_the_command_line_end_in_a_command(tmp_path, capsys):
    assert main(["pretrain", "--root", str(tmp_path / "missing")]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/missing: no such folder; --root takes the folder that holds the audio\n"
        f"ls {tmp_path}\n"
    )
    assert main(["pretrian"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no command 'pretrian'; there are: pretrain, check, fetch, mtt")
    assert error.endswith("\npython -m manifests_tools pretrain --help\n")
    assert error.count("\n") == 2


def test_names_that_do_not_print_do_not_stop_the_commands(music, tmp_path):
    root = os.fsencode(tmp_path) + b"/caf\xe9 \xe9t\xe9"
    os.rename(music, root)
    command = [sys.executable, "-m", "manifests_tools"]
    out = os.fsencode(tmp_path) + b"/out\xe9"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    for arguments, status in [
        (["pretrain", "--root", root, "--out", out, "--workers", "2"], 0),
        (["check", out], 0),
        (["pretrain", "--root", root, "--out", out], 1),
    ]:
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"error: {tmp_path}/out\\udce9: train.tsv and valid.tsv exist")
