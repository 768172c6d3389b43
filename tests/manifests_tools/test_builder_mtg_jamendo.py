"""The four MTG-Jamendo tasks, from the published splits."""

import numpy as np
import pytest
import soundfile

from manifests_tools import mtg_jamendo
from manifests_tools.__main__ import BUILDERS, main
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.labels import ProbingSplit
from music_ssl_fairseq.probing.spec import SPLITS, read_spec
from music_ssl_fairseq.probing.writer import check_leakage
from tests.manifests_tools.golden import write_mtg_jamendo
from tests.options import with_defaults

COUNTS = {
    "instrument": (14_395, 5_466, 5_115, 40),
    "moodtheme": (9_949, 3_802, 4_231, 56),
    "genre": (32_572, 11_043, 11_479, 87),
    "top50": (32_136, 10_888, 11_356, 50),
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mtg")
    return folder, write_mtg_jamendo(folder)


@pytest.mark.parametrize("subset", COUNTS)
def test_golden_counts(tables, subset, tmp_path, monkeypatch):
    folder, audio = tables
    monkeypatch.setattr(mtg_jamendo, "locate", lambda root, name, *others: name)
    data = mtg_jamendo.read(str(tmp_path), subset, str(folder))
    counts = tuple(len(data.splits[split]) for split in SPLITS)
    assert (*counts, len(data.task.classes)) == COUNTS[subset]
    assert counts == tuple(data.task.published.values())
    assert list(data.task.classes) == sorted(data.task.classes)
    names = [item.name for items in data.splits.values() for item in items]
    table = "top50tags" if subset == "top50" else subset
    assert sorted(names) == sorted(audio[table])
    data.refuse_unusable(str(tmp_path))


def small(folder, suffix: str = ".mp3"):
    """Two tracks in each split, of 36 s, 20 s and 30 s; the second one has one tag less."""
    splits = folder / "data" / "splits" / "split-0"
    splits.mkdir(parents=True)
    for i, split in enumerate(("train", "validation", "test")):
        text = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\r\n"
        (folder / f"0{i}").mkdir()
        for name, tags in (
            (f"0{i}/{i}", "instrument---piano\tinstrument---drums"),
            (f"0{i}/9{i}", "instrument---piano"),
        ):
            text += f"track_{i}\tartist_1\talbum_1\t{name}.mp3\t9.9\t{tags}\r\n"
            waveform = np.full((36, 20, 30)[i] * 8_000, 0.25)
            soundfile.write(folder / f"{name}{suffix}", waveform, 8_000, format="WAV")
        (splits / f"autotagging_instrument-{split}.tsv").write_text(text)
    return splits


@pytest.mark.parametrize(("seconds", "start", "stop"), [(30, 3, 33), (10, 13, 23), (0, 0, 36)])
def test_the_middle_of_a_track_is_used(tmp_path, seconds, start, stop):
    small(tmp_path)
    out = tmp_path / "out"
    arguments = ["--root", str(tmp_path), "--out", str(out), "--excerpt-seconds", str(seconds)]
    assert main(["mtg-instrument", *arguments]) == 0
    segments = ProbingSplit(out, "train", read_spec(out)).segments / 16_000
    assert segments.tolist() == [[start, stop]] * 2
    short = ProbingSplit(out, "valid", read_spec(out)).segments / 16_000
    assert short.tolist() == [[5, 15] if seconds == 10 else [0, 20]] * 2


def test_from_audio_of_low_quality_to_labels(tmp_path, capsys):
    small(tmp_path, suffix=".low.mp3")
    assert main(["mtg-instrument", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    task = read_spec(tmp_path / "out")
    assert (task.kind, task.metric) == ("multi-label", "macro_roc_auc")
    assert task.classes == ("instrument---drums", "instrument---piano")
    data = ProbingSplit(tmp_path / "out", "test", task)
    assert data.targets.tolist() == [[True, True], [False, True]]
    assert data.manifest.name(0) == "02/2.low.mp3"
    check_leakage(tmp_path / "out")
    assert (
        capsys.readouterr().out.splitlines()[2] == "test: 2 files (published 5115: -5113), 1.0 min"
    )


def test_lines_without_tags_and_missing_tables(tmp_path):
    splits = small(tmp_path)
    table = splits / "autotagging_instrument-test.tsv"
    table.write_text(table.read_text() + "track_9\tartist_1\talbum_1\t09/9.mp3\t9.9\r\n")
    with pytest.raises(InputError, match=r"-test\.tsv, line 4: no tag; was the file cut off"):
        with_defaults(mtg_jamendo.instrument)(str(tmp_path), out=str(tmp_path / "out"))
    header, line, *_ = table.read_text().splitlines()
    for text, said in ((f"{header}\n{line}\n{line}", "2 times in test"), (line, "no column PATH")):
        table.write_text(text)
        with pytest.raises(InputError, match=said):
            with_defaults(mtg_jamendo.instrument)(str(tmp_path), out=str(tmp_path / "out"))
    table.unlink()
    with pytest.raises(InputError, match=r"-test\.tsv is not in .*https://.*--metadata tells"):
        with_defaults(mtg_jamendo.instrument)(str(tmp_path), out=str(tmp_path / "out"))


def test_a_track_in_two_splits_is_leakage(tmp_path):
    splits = small(tmp_path)
    test = splits / "autotagging_instrument-test.tsv"
    test.write_text(test.read_text().replace("02/2.mp3", "00/0.mp3"))
    with pytest.raises(InputError, match=r"00/0\.mp3 is in train and in test: leakage"):
        with_defaults(mtg_jamendo.instrument)(str(tmp_path), out=str(tmp_path / "out"))


def test_every_task_is_registered_and_has_help(capsys):
    assert len(BUILDERS) == 3 + 13 + 1
    for name in BUILDERS:
        with pytest.raises(SystemExit) as status:
            main([name, "--help"])
        assert status.value.code == 0
        assert f"example: python -m manifests_tools {name} " in capsys.readouterr().out
