"""gtzan-genre and gtzan-beat, on trees as users have them."""

import json
import os
from pathlib import Path

import pytest

from manifests_tools import gtzan
from manifests_tools.__main__ import main
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.labels import ProbingSplit
from music_ssl_fairseq.probing.spec import SPLITS, read_spec
from music_ssl_fairseq.probing.writer import check_leakage
from tests.options import with_defaults

COUNTS = {"train": 443, "valid": 197, "test": 290}
ALL = [name for split in SPLITS for name in gtzan.listed(split)]


def names(folder: Path, split: str) -> list[str]:
    manifest = Manifest(folder / f"{split}.tsv")
    return [manifest.name(i) for i in range(len(manifest))]


def beat_times(name: str) -> list[float]:
    """Made-up beats of an excerpt, different for each, all within 30 s."""
    first = 0.1 + ALL.index(name) / 1000
    return [round(first + 0.5 * i, 4) for i in range(50)]


def write_beats(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ALL:
        rows = [f"{time}\t{1 + i % 4}" for i, time in enumerate(beat_times(name))]
        genre, number, _ = Path(name).name.split(".")
        (folder / f"gtzan_{genre}_{number}.beats").write_text("\n".join(rows) + "\n")


def write_jams(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ALL:
        annotations = [
            annotation("beat", "downbeat", beat_times(name)[::4]),
            annotation("tempo", "tempo", [0.0]),
            annotation("beat", "beat", beat_times(name)),
        ]
        text = json.dumps({"annotations": annotations, "file_metadata": {}})
        (folder / f"{Path(name).name}.jams").write_text(text)


def annotation(namespace: str, kind: str, times: list[float]) -> dict:
    data = [{"time": time, "duration": 0.0, "value": 1, "confidence": 1.0} for time in times]
    return {"namespace": namespace, "sandbox": {"annotation_type": kind}, "data": data}


def test_the_lists_are_the_published_ones():
    assert {split: len(gtzan.listed(split)) for split in SPLITS} == COUNTS
    assert len(set(ALL)) == 930
    assert {name.partition("/")[0] for name in ALL} == set(gtzan.GENRES)
    assert "reggae/reggae.00086.wav" not in ALL


@pytest.mark.parametrize("folder", ["", "Data/genres_original"])
def test_genre_golden_counts_in_every_layout(stubs, tmp_path, capsys, folder):
    root, out = tmp_path / "gtzan", tmp_path / "out"
    stubs.lay(root / folder, ALL)
    stubs.lay(root / folder, ["jazz/jazz.00999.wav"])  # is in no list
    assert main(["gtzan-genre", "--root", str(root), "--out", str(out), "--workers", "1"]) == 0
    task = read_spec(out)
    assert (task.name, task.kind, task.metric) == ("gtzan-genre", "multi-class", "accuracy")
    assert task.classes == gtzan.GENRES
    assert task.counts == task.published == COUNTS
    for split in SPLITS:
        wanted = [os.path.join(folder, name) for name in gtzan.listed(split)]
        assert names(out, split) == wanted
        data = ProbingSplit(out, split, task)
        genres = [task.classes[i] for i in data.targets]
        assert genres == [name.partition("/")[0] for name in gtzan.listed(split)]
    check_leakage(out)
    shown = capsys.readouterr().out
    assert "train: 443 files (published 443), " in shown
    assert "left out of 930 labelled files: none" in shown
    assert "music_ssl_fairseq probe --upstream mfcc --task " in shown


def test_the_corrupt_copy_of_jazz_54_is_named_and_left_out(stubs, tmp_path, capsys):
    stubs.lay(tmp_path / "genres", [name.replace(".wav", ".au") for name in ALL])
    corrupt = tmp_path / "genres" / "jazz" / "jazz.00054.au"
    corrupt.unlink()
    corrupt.write_bytes(b"RIFF but nothing else of a wav file" * 30)
    with_defaults(gtzan.genre)(str(tmp_path), out=str(tmp_path / "out"))
    assert names(tmp_path / "out", "test")[0] == "genres/blues/blues.00012.au"
    task = read_spec(tmp_path / "out")
    assert task.counts == {**COUNTS, "train": 442}
    assert task.missing == 1
    left_out = (tmp_path / "out" / "left_out.tsv").read_text()
    assert left_out.startswith("genres/jazz/jazz.00054.au\tnot readable as audio")
    assert "train: 442 files (published 443: -1)" in capsys.readouterr().out


def test_missing_audio_is_an_error_past_a_share(stubs, tmp_path):
    stubs.lay(tmp_path, ALL)
    for name in gtzan.listed("valid")[:3]:
        (tmp_path / name).unlink()
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"valid: 3 of 197 .* \(1\.5 %\), first blues/.*no such"):
        with_defaults(gtzan.genre)(str(tmp_path), out=str(out))
    assert [file.name for file in out.iterdir()] == ["left_out.tsv"]
    assert len((out / "left_out.tsv").read_text().splitlines()) == 3
    (out / "task.json").touch()
    with pytest.raises(InputError, match=r"task\.json exists already; --force would"):
        with_defaults(gtzan.genre)(str(tmp_path), out=str(out), max_missing=0.02)
    with_defaults(gtzan.genre)(str(tmp_path), out=str(out), max_missing=0.02, force=True)
    assert read_spec(out).counts == {**COUNTS, "valid": 194}
    assert read_spec(out).missing == 3


def test_a_wrong_folder_is_one_line_that_tells_the_source(tmp_path, capsys):
    (tmp_path / "genres" / "blues").mkdir(parents=True)
    assert main(["gtzan-genre", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: no folder for each of the 10 genres")
    assert "https://" in error
    assert error.splitlines()[1] == f"ls {tmp_path}"
    assert main(["gtzan-genre", "--root", str(tmp_path / "none"), "--out", "x"]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_beats_from_jams(stubs, tmp_path):
    stubs.lay(tmp_path / "gtzan", ALL, long=True)
    write_jams(tmp_path / "annotations")
    out = tmp_path / "out"
    with_defaults(gtzan.beat)(
        str(tmp_path / "gtzan"), out=str(out), annotations=str(tmp_path / "annotations")
    )
    task = read_spec(out)
    assert (task.kind, task.counts) == ("beats", COUNTS)
    data = ProbingSplit(out, "train", task)
    for i, name in enumerate(gtzan.listed("train")):
        assert data.beats[i].times.tolist() == beat_times(name)
    assert data.beats[0].positions[:5].tolist() == [0] * 5


def test_beats_are_found_beside_the_audio_and_cut_at_its_end(stubs, tmp_path):
    stubs.lay(tmp_path / "genres", ALL, long=True)
    write_beats(tmp_path / "gtzan_tempo_beat" / "beats")
    file = tmp_path / "gtzan_tempo_beat" / "beats" / "gtzan_reggae_00002.beats"
    file.unlink()
    file.with_suffix(".BEATS").write_text("29.0\t1\n29.9\t2\n30.4\t3\n31.0\t4\n")
    song = tmp_path / "genres" / "rock" / "rock.00012.wav"
    song.rename(song.with_suffix(".WAV"))
    with_defaults(gtzan.beat)(str(tmp_path), out=str(tmp_path / "out"))
    task, found = read_spec(tmp_path / "out"), {}
    for split in SPLITS:
        beats = ProbingSplit(tmp_path / "out", split, task).beats
        found |= dict(zip(gtzan.listed(split), beats, strict=True))
    assert found.pop("reggae/reggae.00002.wav").times.tolist() == [29.0, 29.9]
    for name, beats in found.items():
        assert beats.times.tolist() == beat_times(name)
        assert beats.positions[:5].tolist() == [1, 2, 3, 4, 1]


def test_missing_or_broken_annotations(stubs, tmp_path):
    stubs.lay(tmp_path / "genres", ALL)
    with pytest.raises(InputError, match=r"no \.jams and no \.beats file.*GTZAN-Rhythm \(http"):
        with_defaults(gtzan.beat)(str(tmp_path), out=str(tmp_path / "out"))
    write_beats(tmp_path / "beats")
    file = tmp_path / "beats" / f"gtzan_{Path(ALL[0]).stem.replace('.', '_')}.beats"
    file.write_text("soon 1\n")
    with pytest.raises(InputError, match=rf"{file.name}: not a file of beats .*soon"):
        with_defaults(gtzan.beat)(str(tmp_path), out=str(tmp_path / "out"))
    file.unlink()
    with pytest.raises(InputError, match=rf"no beats of {Path(ALL[0]).stem} in"):
        with_defaults(gtzan.beat)(str(tmp_path), out=str(tmp_path / "out"))
