"""`python -m music_ssl_fairseq extract` from files to files."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.extract.__main__ import get_parser, main
from music_ssl_fairseq.extract.batches import Cut, QueuedWindow, batches
from music_ssl_fairseq.extract.store import open_folder
from music_ssl_fairseq.frames import FrameGrid
from music_ssl_fairseq.runtime.files import hold
from music_ssl_fairseq.upstream import load
from music_ssl_fairseq.upstream.windows import Windowing, sections
from tests import checkpoints, tiny
from tests.audio_files import write_tone
from tests.checkpoints import Attack
from tests.full_disk import full_disk

GRID = FrameGrid(window=400, hop=320)
WINDOWING = Windowing(seconds=6.0, overlap=3.0, whole=9.0)
TRACKS = [
    ("long.flac", 20.0, 16_000, 1),
    ("album/a b.ogg", 2.0, 44_100, 2),
    ("c.wav", 1.0, 16_000, 1),
    ("d.wav", 1.0, 16_000, 1),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with `music/`, `tracks.tsv` and `tiny.pt`."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for seed, (name, seconds, rate, channels) in enumerate(TRACKS):
        path = write_tone(folder / "music" / name, seconds, rate, channels, seed)
        lines.append((name, audio.probe(path).length_at()))
    write_manifest(folder / "tracks.tsv", folder / "music", lines)
    torch.manual_seed(0)
    checkpoints.write(folder / "tiny.pt", "music_hubert", tiny.music_hubert(), normalize=True)
    return folder


def extract(corpus: Path, out: Path, *options: str, manifest: Path | None = None) -> int:
    return main(
        [
            *("--checkpoint", str(corpus / "tiny.pt"), "--out", str(out)),
            *("--manifest", str(manifest or corpus / "tracks.tsv")),
            *("--window", "6", "--device", "cpu", "--workers", "0", *options),
        ]
    )


def expected(corpus: Path, name: str) -> np.ndarray:
    """`[layers, frames, D]` by `features`."""
    windowing = Windowing(6.0, 3.0, 9.0)
    waveform = audio.read(corpus / "music" / name)
    return load(corpus / "tiny.pt").features(waveform, 16_000, windowing=windowing).numpy()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_means_are_those_of_features(corpus, tmp_path, capsys, workers):
    assert extract(corpus, tmp_path / "out", "--workers", workers) == 0
    found = np.load(tmp_path / "out" / "features.npy")
    assert found.shape == (4, 4, 32)
    assert found.dtype == np.float32
    for row, (name, *_) in zip(found, TRACKS, strict=True):
        np.testing.assert_allclose(row, expected(corpus, name).mean(1), atol=1e-5)
    index = (tmp_path / "out" / "index.tsv").read_text().splitlines()
    assert index[:3] == ["row\tname\tframes", "0\tlong.flac\t999", "1\talbum/a b.ogg\t99"]
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["layers"] == [0, 1, 2, 3]
    assert metadata["fingerprint"] == load(corpus / "tiny.pt").fingerprint
    assert not list((tmp_path / "out").glob(".*"))
    assert "4 tracks, 23.9 s of audio in" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_frames_are_those_of_features(corpus, tmp_path, dtype):
    options = ("--pool", "frames", "--layer", "0,2-3", "--dtype", dtype)
    assert extract(corpus, tmp_path, *options) == 0
    for name, *_ in TRACKS:
        found = np.load(tmp_path / f"{name}.npy")
        assert found.dtype == dtype
        tolerance = 1e-5 if dtype == "float32" else 4e-3
        np.testing.assert_allclose(found, expected(corpus, name)[[0, 2, 3]], atol=tolerance)


@pytest.mark.parametrize("batch_seconds", ["1", "13", "1000"])
def test_batches_change_nothing(corpus, tmp_path, batch_seconds):
    assert extract(corpus, tmp_path, "--batch-seconds", batch_seconds) == 0
    for row, (name, *_) in zip(np.load(tmp_path / "features.npy"), TRACKS, strict=True):
        np.testing.assert_allclose(row, expected(corpus, name).mean(1), atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "frames"])
def test_an_interrupted_run_goes_on(corpus, tmp_path, monkeypatch, capsys, pool):
    from music_ssl_fairseq.extract.run import Extraction

    whole, start, left = tmp_path / "whole", Extraction._start, [2]
    assert extract(corpus, whole, "--pool", pool) == 0

    def interrupted(self, rows: list[QueuedWindow]):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return start(self, rows)

    monkeypatch.setattr(Extraction, "_start", interrupted)
    monkeypatch.setattr("music_ssl_fairseq.extract.run._BATCHES_IN_FLIGHT", 0)
    out = tmp_path / "out"
    options = ("--pool", pool, "--batch-seconds", "2")
    assert extract(corpus, out, *options) == 130
    assert "interrupted; to continue, run" in capsys.readouterr().err
    assert not list(out.rglob(".*"))
    assert not (out / "features.npy").exists()
    left[0] = 1000
    assert extract(corpus, out, *options) == 0
    for path in whole.rglob("*.npy"):
        there = np.load(out / path.relative_to(whole))
        np.testing.assert_allclose(there, np.load(path), atol=1e-5 if pool == "mean" else 4e-3)
    calls = 1000 - left[0]
    assert extract(corpus, out, *options) == 0
    assert 1000 - left[0] == calls
    assert "finished already" in capsys.readouterr().out


@pytest.fixture(scope="module", params=["mean", "frames"])
def store(request, corpus, tmp_path_factory) -> tuple[str, Path]:
    """A finished store of either kind, to copy."""
    folder = tmp_path_factory.mktemp("store") / request.param
    assert extract(corpus, folder, "--pool", request.param) == 0
    return request.param, folder


def rewrite(path: Path, change) -> None:
    """Overwrite a file with `change(its bytes)`."""
    path.write_bytes(change(path.read_bytes()))


def middle(data: bytes, junk: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + junk + data[half + len(junk) :]


DAMAGE = {
    "half of it": lambda data: data[: len(data) // 2],
    "half a value less": lambda data: data[:-2],
    "empty": lambda data: b"",
    "a cut header": lambda data: data[:50],
    "zeros at the end": lambda data: data[:-1000] + bytes(1000),
    "zeros in the middle": lambda data: middle(data, bytes(64)),
    "junk in the middle": lambda data: middle(data, b"junk" * 16),
    "text": lambda data: b"These are no features.\n" * 50,
    "something appended": lambda data: data + b"more",
    "another shape": lambda data: data.replace(b"'shape': (4, ", b"'shape': (2, ", 1),
    "another type": lambda data: data.replace(b"'<f", b"'<i", 1),
    "an endless shape": lambda data: data.replace(b"4, ", b"4" * 60 + b", ", 1),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_damaged_is_computed_again_and_nothing_else(
    corpus, store, tmp_path, monkeypatch, capsys, how
):
    pool, whole = store
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    target = "features.npy" if pool == "mean" else "album/a b.ogg.npy"
    rewrite(tmp_path / target, DAMAGE[how])
    assert extract(corpus, tmp_path, "--pool", pool) == 0
    for path in whole.rglob("*.npy"):
        if path.name != "checksums.npy":
            there = tmp_path / path.relative_to(whole)
            tolerance = 1e-5 if pool == "mean" else 4e-3
            np.testing.assert_allclose(np.load(there), np.load(path), atol=tolerance)
    said = capsys.readouterr()
    if pool == "frames":
        assert "1 of 4 tracks are missing, damaged or incomplete" in said.err
        assert f"{tmp_path}: 1 track, " in said.out
    elif how != "something appended":
        assert re.search(r"[1-4] of 4 tracks are missing, damaged or incomplete", said.err)
    monkeypatch.setattr("music_ssl_fairseq.extract.run.Extraction._start", None)
    assert extract(corpus, tmp_path, "--pool", pool) == 0
    assert "finished already, 4 tracks" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "zeros"])
def test_without_checksums_nothing_counts_as_there(corpus, store, tmp_path, capsys, how):
    pool, whole = store
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    checksums = tmp_path / "checksums.npy"
    if how == "missing":
        checksums.unlink()
    else:
        cut = {"empty": 0, "cut": 128 + 16, "zeros": 128}[how]
        rewrite(checksums, lambda data: data[:cut].ljust(len(data) * (how == "zeros"), b"\0"))
    assert extract(corpus, tmp_path, "--pool", pool) == 0
    assert f"{tmp_path}: 4 tracks, " in capsys.readouterr().out


def test_an_array_that_wants_to_run_code_is_not_opened(corpus, store, tmp_path):
    pool, whole = store
    shutil.copytree(whole, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.npy"):
        np.save(path, np.array([Attack(f"touch {tmp_path / 'trace'}")], object), allow_pickle=True)
    assert extract(corpus, tmp_path / "out", "--pool", pool) == 0
    assert not (tmp_path / "trace").exists()
    assert np.isfinite(np.load(next((tmp_path / "out").rglob("[fd]*.npy")))).all()


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", "[" * 100_000])
def test_features_of_unknown_settings_are_not_taken_for_these(
    corpus, store, tmp_path, capsys, text
):
    pool, whole = store
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    metadata = tmp_path / "metadata.json"
    metadata.unlink() if text is None else metadata.write_text(text)
    capsys.readouterr()
    assert extract(corpus, tmp_path, "--pool", pool) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: .*metadata\.json: .*--force would replace them\n.+\n", error)
    assert extract(corpus, tmp_path, "--pool", pool, "--force") == 0


def test_a_store_that_was_copied_is_whole(corpus, store, tmp_path, monkeypatch, capsys):
    pool, whole = store
    for path in whole.rglob("*.*"):
        if path.is_file():  # with other times of change
            (tmp_path / path.relative_to(whole)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(whole)).write_bytes(path.read_bytes())
    monkeypatch.setattr("music_ssl_fairseq.extract.run.Extraction._start", None)
    assert extract(corpus, tmp_path, "--pool", pool) == 0
    said = capsys.readouterr()
    assert "finished already, 4 tracks" in said.out
    assert "replaced" not in said.err
    song = corpus / "music" / "c.wav"
    content = song.read_bytes()
    song.write_bytes(content[:44] + content[:43:-1])
    assert extract(corpus, tmp_path, "--pool", pool) == 0
    song.write_bytes(content)
    assert "audio files have been replaced since features were made" in capsys.readouterr().err


def test_features_that_are_no_numbers_are_left_out(corpus, store, tmp_path, monkeypatch, capsys):
    from music_ssl_fairseq.upstream.model import Upstream

    pool, _ = store
    raw_layers = Upstream.raw_layers

    def overflows(self, waveform, *rest):
        found = raw_layers(self, waveform, *rest)
        return [layer * 1e9 if waveform.size(1) == 16_000 else layer for layer in found]

    monkeypatch.setattr(Upstream, "raw_layers", overflows)
    options = ("--dtype", "float16") if pool == "frames" else ()
    times = 1 if pool == "frames" else 0
    assert extract(corpus, tmp_path, "--pool", pool, *options) == times
    if times:
        left_out = (tmp_path / "left_out.tsv").read_text().splitlines()
        assert [line.split("\t")[0] for line in left_out] == ["c.wav", "d.wav"]
        assert all("too large for float16: give --dtype float32" in line for line in left_out)
        assert sorted(path.name for path in tmp_path.glob("*.wav.npy")) == []


def test_one_folder_one_process(corpus, tmp_path, capsys):
    with hold(tmp_path / "extract.lock", "extracts features", ""):
        assert extract(corpus, tmp_path) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}: process {os.getpid()} on " in error
    assert "extracts features here already; wait until it has ended" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["extract.lock"]
    assert extract(corpus, tmp_path) == 0
    names = ["checksums.npy", "features.npy", "index.tsv", "metadata.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_what_killed_processes_were_writing_is_removed(corpus, store, tmp_path):
    pool, whole = store
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    left = [tmp_path / f".{'0a' * 8}.77.tmp.npy", tmp_path / "album" / f".{'1b' * 8}.7.tmp.npy"]
    left = left if pool == "frames" else left[:1]
    for path in left:
        path.write_bytes(b"half")
    mine = tmp_path / ".mine.tmp.npy"
    mine.touch()
    assert extract(corpus, tmp_path, "--pool", pool) == 0
    assert [path.exists() for path in left] == [False] * len(left)
    assert mine.exists()


def test_other_settings_need_another_folder_or_force(corpus, tmp_path, capsys):
    assert extract(corpus, tmp_path, "--layer", "1") == 0
    assert extract(corpus, tmp_path, "--layer", "2") == 1
    assert "holds features made with layers [1] instead of [2]" in capsys.readouterr().err
    assert np.load(tmp_path / "features.npy").shape == (4, 1, 32)
    assert extract(corpus, tmp_path, "--layer", "2", "--force") == 0
    name = TRACKS[2][0]
    found = np.load(tmp_path / "features.npy")[2, 0]
    np.testing.assert_allclose(found, expected(corpus, name)[2].mean(0), atol=1e-5)


def test_unreadable_tracks_are_left_out_and_tried_again(corpus, tmp_path, capsys):
    music, manifest, out = tmp_path / "music", tmp_path / "some.tsv", tmp_path / "out"
    for name, seconds in (("good.flac", 1.0), ("cut.flac", 20.0), ("shorter.wav", 2.0)):
        write_tone(music / name, seconds)
    whole = (music / "cut.flac").read_bytes()
    (music / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (music / "text.flac").write_text("not audio\n")
    lines = [("good.flac", 1.0), ("cut.flac", 20.0), ("shorter.wav", 5.0), ("text.flac", 1.0)]
    lines += [("missing.flac", 1.0), ("empty.wav", 0.0)]
    write_manifest(manifest, music, [(name, round(16_000 * s)) for name, s in lines])
    soundfile.write(music / "empty.wav", np.zeros(0), 16_000)
    assert extract(corpus, out, manifest=manifest) == 1
    error = capsys.readouterr().err
    assert "5 of 6 tracks were left out" in error
    assert "empty.wav: 0.000 s of audio is less than one frame (0.025 s)" in error
    left_out = dict(line.split("\t") for line in (out / "left_out.tsv").read_text().splitlines())
    assert list(left_out) == [name for name, _ in lines[1:]]
    assert "lasts 2.00 s, but its manifest says 5.00 s" in left_out["shorter.wav"]
    assert left_out["missing.flac"] == "no such file"
    rows = np.load(out / "features.npy")
    assert not np.isnan(rows[0]).any()
    assert np.isnan(rows[1:]).all()
    (music / "cut.flac").write_bytes(whole)
    assert extract(corpus, out, manifest=manifest) == 1
    assert "cut.flac" not in (out / "left_out.tsv").read_text()
    assert not np.isnan(np.load(out / "features.npy")[:2]).any()
    frames = tmp_path / "frames"
    assert extract(corpus, frames, "--pool", "frames", manifest=manifest) == 1
    assert sorted(path.name for path in frames.glob("*.*.npy")) == ["cut.flac.npy", "good.flac.npy"]


@pytest.mark.parametrize(("pool", "size"), [("mean", 1_000), ("frames", 50_000)])
def test_a_full_disk_is_one_line_and_what_is_there_stays(corpus, tmp_path, capsys, pool, size):
    out, options = tmp_path / "out", ("--pool", pool, "--batch-seconds", "2")
    folder, *lines = (corpus / "tracks.tsv").read_text().splitlines()
    manifest = tmp_path / "longest_last.tsv"
    manifest.write_text("\n".join([folder, *lines[::-1]]) + "\n")
    with full_disk(size):
        assert extract(corpus, out, *options, manifest=manifest) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-2:-1]
    assert re.search(r"out\S*: File too large", lines[-2])
    assert lines[-1].startswith(f"df -h {tmp_path}")
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]
    there = {path: path.stat().st_mtime_ns for path in out.glob("*.wav.npy")}
    assert len(there) == (2 if pool == "frames" else 0)
    assert extract(corpus, out, *options, manifest=manifest) == 0
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert extract(corpus, tmp_path / "whole", *options, manifest=manifest) == 0
    for path in (tmp_path / "whole").rglob("*.npy"):
        found = np.load(out / path.relative_to(tmp_path / "whole"))
        np.testing.assert_allclose(found, np.load(path), atol=1e-5 if pool == "mean" else 4e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layer", "4"), r"tiny.pt: has no layer 4, only 0 .* to 3"),
        (("--manifest", "none.tsv"), "none.tsv: no such manifest"),
        (("--checkpoint", "none.pt"), "none.pt: no such checkpoint"),
        (("--device", "cuda"), "torch finds no GPU"),
    ],
)
def test_what_is_wrong_is_one_line(corpus, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert extract(corpus, tmp_path / "out", *options) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) <= 2  # the second is a command
    assert error[0].startswith("error: ")
    assert re.search(message, error[0])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "layers"), [("6", [6]), ("0-3", [0, 1, 2, 3]), ("0, 8-9,4, 8", [0, 8, 9, 4])]
)
def test_layers_can_be_listed(text, layers):
    options = ["--checkpoint", "x", "--manifest", "y", "--out", "z", "--layer", text]
    assert get_parser().parse_args(options).layer == layers


@pytest.mark.parametrize("text", ["", "a", "-1", "3-1", "1-"])
def test_nonsense_for_layers_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        get_parser().parse_args(
            ["--checkpoint", "x", "--manifest", "y", "--out", "z", f"--layer={text}"]
        )


@pytest.mark.parametrize(("name", "says"), [("../up.wav", "leads out"), ("y" * 252, "too long")])
def test_names_that_no_file_of_features_can_have_are_refused(tmp_path, name, says):
    write_manifest(tmp_path / "x.tsv", tmp_path, [(name, 16_000)])
    with pytest.raises(InputError, match=f"line 2: '{name}':? {says}"):
        open_folder(tmp_path, Manifest(tmp_path / "x.tsv"), {"pool": "frames"}, {}, force=False)
    assert [file.name for file in tmp_path.iterdir()] == ["x.tsv"]


def rows(cut: Cut, tracks: range):
    for track in tracks:
        for section in sections(int(cut.manifest.num_samples[track]), cut.grid, cut.windowing):
            for window in section.windows:
                yield QueuedWindow(track, window, torch.zeros(window.num_samples), None)


def test_batches_hold_equal_lengths_and_do_not_wait_for_ever(tmp_path):
    """A thousand lengths, each of which comes once, between tracks of a common one."""
    lengths = [16_000 + i if i % 2 else 32_000 for i in range(1000)] + [10_000_000]
    write_manifest(tmp_path / "x.tsv", tmp_path, [(str(i), n) for i, n in enumerate(lengths)])
    cut = Cut(Manifest(tmp_path / "x.tsv"), GRID, WINDOWING)
    given = taken = 0

    def counted():
        nonlocal given
        for row in rows(cut, range(1001)):
            given += len(row.waveform)
            yield row

    seen: dict[int, list[int]] = {}
    for batch in batches(counted(), 20.0):
        assert len({len(row.waveform) for row in batch}) == 1
        assert sum(len(row.waveform) for row in batch) <= 20 * 16_000
        taken += sum(len(row.waveform) for row in batch)
        assert given - taken <= 5 * 20 * 16_000 + 100_000
        for row in batch:
            seen.setdefault(row.track, []).append(row.window.first)
    assert given == taken
    assert sorted(seen) == list(range(1001))
    assert all(firsts == sorted(firsts) for firsts in seen.values())


def test_loads_are_long_enough_to_hand_over_and_bounded(tmp_path):
    write_manifest(
        tmp_path / "x.tsv", tmp_path, [("long", 2 * 3600 * 16_000)] + [("short", 64_000)] * 100
    )
    cut = Cut(Manifest(tmp_path / "x.tsv"), GRID, Windowing())
    loads = list(cut.loads(range(101)))
    assert max(sum(part.section.num_samples for part in load) for load in loads) <= 600 * 16_000
    assert sum(len(load) > 1 for load in loads) == 7
    assert sum(part.track > 0 for load in loads for part in load) == 100


def test_a_killed_reader_is_explained(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audio, "read", lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
    assert extract(corpus, tmp_path, "--workers", "1") == 1
    assert "a worker process was killed" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("extractor", ["default", "layer_norm"])
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (("--precision", "fp32", "--compile", "off"), 2e-3),
        (("--precision", "bf16", "--compile", "off"), 5e-2),
        (("--precision", "bf16", "--compile", "on"), 5e-2),
    ],
)
def test_a_gpu_gives_the_same(corpus, tmp_path, extractor, options, tolerance):
    """In shapes that the fused kernels take: channels are a power of two."""
    torch.manual_seed(0)
    layers = "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2"
    fields = {"conv_feature_layers": layers, "encoder_embed_dim": 64, "extractor_mode": extractor}
    path = checkpoints.write(tmp_path / "x.pt", "music_hubert", tiny.music_hubert(**fields))
    found = []
    for device, more in (("cpu", ()), ("cuda", ("--workers", "2", *options))):
        out = tmp_path / device
        more = ("--checkpoint", str(path), "--batch-seconds", "13", "--device", device, *more)
        assert extract(corpus, out, *more) == 0
        found.append(np.load(out / "features.npy"))
    assert np.abs(found[1] - found[0]).max() < tolerance * np.abs(found[0]).max()
