"""`custom`: tasks of one's own, from a CSV."""

import os
from pathlib import Path

import numpy as np
import pytest

from manifests_tools.__main__ import main
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.labels import ProbingSplit
from music_ssl_fairseq.probing.spec import read_spec
from music_ssl_fairseq.probing.writer import check_leakage
from tests.audio_files import write_tone

GOOD = ("a", "b", "a", "b", "a", "b")


@pytest.fixture
def music(tmp_path: Path) -> Path:
    for i in range(6):
        write_tone(tmp_path / "music" / f"{i}.wav", 2.0 + i / 2, 8_000)
    return tmp_path / "music"


def build(music: Path, text: str, *options: str) -> int:
    file = music / "labels.csv"
    file.write_text(text, encoding="utf-8")
    out = music.parent / "out"
    return main(["custom", "--csv", str(file), "--out", str(out), *options])


def loaded(music: Path, split: str) -> ProbingSplit:
    return ProbingSplit(music.parent / "out", split, read_spec(music.parent / "out"))


def table(*labels: str, quote: str = '"') -> str:
    splits = ["train", "train", "train", "valid", "test", "test"]
    rows = [f"{i}.wav,{quote}{label}{quote},{splits[i]}" for i, label in enumerate(labels)]
    return "\n".join(["path,label,split", *rows]) + "\n"


def test_multi_class(music, capsys):
    assert build(music, table("rock", "pop, étude", "rock", "rock", "pop, étude", "rock"),
                 "--kind", "multi-class", "--name", "my-genre") == 0  # fmt: skip
    task = read_spec(music.parent / "out")
    assert (task.name, task.classes) == ("my-genre", ("pop, étude", "rock"))
    assert task.counts == {"train": 3, "valid": 1, "test": 2}
    assert task.metric == "accuracy"
    assert loaded(music, "train").targets.tolist() == [1, 0, 1]
    manifest = Manifest(music.parent / "out" / "test.tsv")
    assert manifest.root == str(music)
    assert manifest.num_samples.tolist() == [64_000, 72_000]
    assert "warning: valid has no example of: pop, étude" in capsys.readouterr().err


def test_tabs_byte_order_mark_other_columns_and_names_of_splits(music, capsys):
    text = table("a", "b", "a", "b", "a", "b", quote="").replace(",", "\t")
    text = text.replace("valid", "Validation").replace("path\t", "\ufeffpath\t")
    lines = [line + "\tcomment" for line in text.splitlines()]
    (music / "3.wav").rename(music / " 3.wav")  # a cell may have blanks that the name has not
    lines = [line.replace("3.wav", " 3.wav").replace("4.wav", " 4.wav ") for line in lines]
    assert build(music, "\r\n".join(lines), "--kind", "multi-class") == 0
    assert loaded(music, "valid").targets.tolist() == [1]
    assert "labels.csv: columns that are not used: 'comment'\n" in capsys.readouterr().err


def test_classes_that_look_alike_are_named(music, capsys):
    assert (
        build(music, table("01", "1", "é", "e\u0301", "Pop", "pop"), "--kind", "multi-class") == 0
    )
    named = "'01' and '1', 'Pop' and 'pop', 'e\u0301' and 'é'\n"
    assert f"warning: classes that are told apart: {named}" in capsys.readouterr().err


def test_a_task_that_was_written_in_part_is_none(music, monkeypatch):
    text = table(*GOOD)
    assert build(music, text, "--kind", "multi-class") == 0
    monkeypatch.setattr("manifests_tools.probing.write_split", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(music, text, "--kind", "multi-class", "--force")
    with pytest.raises(InputError, match="no such file"):
        read_spec(music.parent / "out")


def test_multi_label_and_another_separator(music):
    labels = ("fast|loud", "", "slow", "fast", "slow | loud", "")
    assert build(music, table(*labels), "--kind", "multi-label", "--separator", "|") == 0
    assert read_spec(music.parent / "out").classes == ("fast", "loud", "slow")
    assert loaded(music, "train").targets.astype(int).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert loaded(music, "test").targets.astype(int).tolist() == [[0, 1, 1], [0, 0, 0]]


def test_regression(music):
    labels = ("1;2.5", "-1;0", "3e1;1", "0;0", "1;1", "2;2")
    assert build(music, table(*labels), "--kind", "regression", "--targets", "x,y") == 0
    assert read_spec(music.parent / "out").targets == ("x", "y")
    np.testing.assert_array_equal(loaded(music, "train").targets, [[1, 2.5], [-1, 0], [30, 1]])
    assert build(music, table(*labels), "--kind", "regression", "--force") == 0
    assert read_spec(music.parent / "out").targets == ("value 1", "value 2")


def test_key(music):
    labels = ("C# minor", "Db minor", "c major", "F:maj", "A minor", "B major")
    assert build(music, table(*labels), "--kind", "key") == 0
    task = read_spec(music.parent / "out")
    assert len(task.classes) == 24
    found = [task.classes[i] for i in loaded(music, "train").targets]
    assert found == ["Db minor", "Db minor", "C major"]


def test_beats_as_times_and_as_files(music, capsys):
    (music / "beats").mkdir()
    (music / "beats" / "1.txt").write_text("0.25 1\n1.25 2\n99 1\n")
    labels = ("0.5;1.0;1.5", "beats/1.txt", "0.5/1;1/2", "1", "1", "1")
    assert build(music, table(*labels), "--kind", "beats") == 0
    beats = loaded(music, "train").beats
    assert [its.times.tolist() for its in beats] == [[0.5, 1, 1.5], [0.25, 1.25], [0.5, 1]]
    assert [its.positions.tolist() for its in beats] == [[0, 0, 0], [1, 2], [1, 2]]
    late = "train: 1 beats lie after the end of their files: 1.wav; they are left out"
    assert late in capsys.readouterr().err


def test_late_beats_are_counted_in_all_segments_of_a_file(music, capsys):
    lines = ["0.wav,0.1;0.2;0.3;99,train,0,1", "0.wav,0.1;0.2;0.3;99,train,1,2"]
    lines = ["path,label,split,start,stop", *lines, "1.wav,1,valid,,", "2.wav,1,test,,"]
    assert build(music, "\n".join(lines) + "\n", "--kind", "beats") == 0
    assert "train: 2 beats lie after the end of their files: 0.wav" in capsys.readouterr().err


def test_segments_and_groups(music):
    text = "path,label,split,start,stop,group\n0.wav,a,train,0,1,s\n0.wav,a,train,1,2,s\n"
    text += "1.wav,a,valid,,,\n2.wav,b,test,0.5,1.5000001,\n2.wav,a,test,1.5,2.5,\n"
    assert build(music, text, "--kind", "multi-class") == 0
    train = loaded(music, "train")
    assert (train.segments / 16_000).tolist() == [[0, 1], [1, 2]]
    assert train.groups == ["s", "s"]
    assert loaded(music, "valid").segments.tolist() == [[0, 40_000]]
    # Without a group, a part stands for itself.
    assert loaded(music, "test").groups == ["2.wav 0.5-1.5000001", "2.wav 1.5-2.5"]
    assert loaded(music, "test").group_index.tolist() == [0, 1]


def test_absolute_paths_and_another_root(music, tmp_path):
    text = table("a", "b", "a", "b", "a", "b").replace("5.wav", str(music / "5.wav"))
    (tmp_path / "else where").mkdir()
    file = tmp_path / "else where" / "x.csv"
    file.write_text(text)
    arguments = ["--csv", str(file), "--root", str(music), "--out", str(tmp_path / "out")]
    assert main(["custom", *arguments, "--kind", "multi-class"]) == 0
    assert Manifest(tmp_path / "out" / "test.tsv").path(1) == str(music / "5.wav")


def test_another_separator_is_noticed(music, capsys):
    text = table("a|b", "b", "a", "a|b", "b", "a")
    assert build(music, text, "--kind", "multi-label") == 0
    assert "if 'a|b' is several, give --separator '|' --force\n" in capsys.readouterr().err
    assert build(music, text, "--kind", "multi-label", "--separator", "|", "--force") == 0
    assert "--separator" not in capsys.readouterr().err


def test_check_reads_the_labels_too(music, capsys):
    assert build(music, table(*GOOD), "--kind", "multi-class") == 0
    out = music.parent / "out"
    assert main(["check", str(out)]) == 0
    (out / "test.labels").write_text("a\nz\n")
    assert main(["check", str(out)]) == 1
    assert "test.labels, line 2 (5.wav): 'z' is not one of the 2 classes" in capsys.readouterr().out


def test_without_a_test_split(music, capsys):
    text = table("a", "b", "a", "b")
    assert build(music, table("a", "b", "a", "b", "a", "b"), "--kind", "multi-class") == 0
    assert build(music, text, "--kind", "multi-class", "--force") == 0
    said = capsys.readouterr()
    assert "warning: no test split" in said.err
    assert said.out.endswith(" --split valid\n")  # a command that works
    with pytest.raises(InputError, match="has no split test, only train, valid; --split"):
        loaded(music, "test")
    out = music.parent / "out"
    assert read_spec(out).counts == {"train": 3, "valid": 1}
    # Of the earlier run, which had one, nothing is left.
    assert not list(out.glob("test.*"))


def test_without_a_column_of_splits_songs_are_divided(music, capsys):
    rows = [f"{i}.wav,{'ab'[i % 2]}" for i in range(6)]
    drawn = []
    for lines in (rows, rows[::-1], [f"{music}/{row}" for row in rows]):
        text = "\n".join(["path,label", *lines])
        assert build(music, text, "--kind", "multi-class", "--force") == 0
        assert "no column split, so songs are divided 3 : 1 : 1" in capsys.readouterr().err
        splits = [loaded(music, split) for split in ("train", "valid", "test")]
        names = [[split.manifest.name(i) for i in range(len(split))] for split in splits]
        drawn.append([{Path(name).name for name in of_split} for of_split in names])
    assert [len(split) for split in drawn[0]] == [4, 1, 1]
    assert drawn[0] == drawn[1] == drawn[2]
    text = text.replace("label", "label,fold", 1)
    assert build(music, text, "--kind", "multi-class", "--force") == 1
    assert "no column 'split'" in capsys.readouterr().err


def test_parts_of_a_song_are_in_one_drawn_split(music):
    rows = [f"{i}.wav,{'ab'[i % 2]},{start},{start + 1}" for i in range(6) for start in (0, 1)]
    assert build(music, "\n".join(["path,label,start,stop", *rows]), "--kind", "multi-class") == 0
    assert read_spec(music.parent / "out").counts == {"train": 8, "valid": 2, "test": 2}
    check_leakage(music.parent / "out")


def test_an_artist_of_several_labels_is_in_one_drawn_split(music, capsys):
    rows = [f"{i}.wav,{'ab'[i % 2]},{'xxyyzz'[i]}" for i in range(6)]
    assert build(music, "\n".join(["path,label,artist", *rows]), "--kind", "multi-class") == 0
    assert (
        "so artists are divided 3 : 1 : 1 into train, valid and test\n" in capsys.readouterr().err
    )
    found = [loaded(music, split).manifest for split in ("train", "valid")]
    train, valid = ({int(m.name(i)[0]) // 2 for i in range(len(m.num_samples))} for m in found)
    assert (len(train), len(valid), train & valid) == (2, 1, set())


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (table("a", "b", "c", "a", "a", "a"), ["--classes", "CLASSES"],
         "line 4: label 'c' is not in the class list"),
        (table(*GOOD).replace("3.wav", "0.wav"), [], "line 5: 0.wav is in line 2 already"),
        (table(*GOOD).replace("3.wav", "./0.wav"), [], "line 5: ./0.wav is in line 2 already"),
        (table(*GOOD[:4], "", "b"), [], "line 6: no label for 4.wav"),
        (table(*GOOD[:4], "nan", "b"), [], "line 6: label 'nan' stands for a missing value"),
        (table(*GOOD).replace("2.wav", "a\\2.wav"), [], "folders are separated by / here"),
        (table(*GOOD).replace("valid", "vlaid"), [], "line 5: split 'vlaid' is none of train"),
        (table(*GOOD).replace("valid", "test"), [], "no labelled file for the split valid"),
        (table(*GOOD).replace(",label", ",class"), [], "no column 'label': the first line"),
        ("", [], "no column 'path': the first line must name"),
        (table(*GOOD).replace("2.wav", ""), [], "line 4: no path"),
        (table(*GOOD).replace("2.wav", "9.wav"), [], "train: 1 of 3 labelled files cannot be used"),
        (table(*GOOD[:5], "b\tc"), [], "a tab or line break"),
        (table("C minor", "H major", *GOOD[2:]), ["--kind", "key"], "line 3: 'H major' is not a"),
        (table(*GOOD), ["--kind", "regression"], "line 2: not a finite number: 'a'"),
        (table("1", "1;2", "1", "1", "1", "1"), ["--kind", "regression"],
         "line 3: 2 numbers, but 1 in the lines above"),
        (table("1", "2", "1", "1", "1", "1"), ["--kind", "regression", "--targets", "x,y"],
         "1 numbers per line, but --targets names 2"),
        (table("1;0.5", "1", "1", "1", "1", "1"), ["--kind", "beats"],
         "line 2: beats are not ascending"),
        (table("0;500;1000", "1", "1", "1", "1", "1"), ["--kind", "beats"],
         "train: 2 beats lie after the end of their files: 0.wav"),
        (table(*["500;1000"] * 6), ["--kind", "beats"],
         "train: 6 beats lie after the end of their files: 0.wav"),
        (table("a.beats", "1", "1", "1", "1", "1"), ["--kind", "beats"],
         "'a.beats': neither times nor the name of a file"),
        (table("", "", "", "a", "a", "a"), ["--kind", "multi-label"],
         "not one of the 3 files of train has a label"),
        (table(*GOOD[:5], "['a']"), ["--kind", "multi-label"], "is a list of Python; write a;b"),
        (table(*[""] * 6), ["--kind", "multi-label"], "labels.csv: no line has a label"),
        (table(*GOOD), ["--targets", "x"], "--targets goes with --kind regression"),
        (table(*GOOD), ["--metric", "r2"], "metric 'r2' does not fit the kind multi-class"),
        ("path,label,split,start,stop\n0.wav,a,train,2,1\n", [], "line 2: start '2' and stop '1'"),
        ("path,label,split,start,stop\n0.wav,a,train,2,\n", [], "line 2: start '2' and stop ''"),
        ("path,label,split,group\n0.wav,a,train,s\n1.wav,a,valid,s\n2.wav,b,valid,t\n", [],
         "group s is in train and in valid: leakage"),
        ("path,label,split,group\n0.wav,a,train,s\n1.wav,b,train,s\n2.wav,b,valid,t\n", [],
         "group s: has parts labelled a and b, but its score is one; is it an artist or album?"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(music, capsys, text, options, expected):
    (music / "classes.txt").write_text("a\nb\n")
    options = [str(music / "classes.txt") if option == "CLASSES" else option for option in options]
    if "--kind" not in options:
        options += ["--kind", "multi-class"]
    assert build(music, text, *options) == 1
    error = capsys.readouterr().err.partition("error: ")[2]
    assert error.count("\n") <= 2  # perhaps a command below
    assert expected in error
    assert not (music.parent / "out" / "task.json").exists()


def test_a_csv_from_a_pipe(music):
    reading, writing = os.pipe()
    os.write(writing, table(*GOOD).encode())
    os.close(writing)
    arguments = ["--csv", f"/dev/fd/{reading}", "--root", str(music), "--kind", "multi-class"]
    assert main(["custom", *arguments, "--out", str(music.parent / "out")]) == 0
    os.close(reading)
    assert loaded(music, "train").targets.tolist() == [0, 1, 0]


def test_a_missing_csv(music, capsys):
    arguments = ["--csv", str(music / "none.csv"), "--kind", "key", "--out", "x"]
    assert main(["custom", *arguments]) == 1
    assert capsys.readouterr().err.endswith(
        f"none.csv: cannot be read (No such file or directory)\nls {music}\n"
    )


def test_a_segment_beyond_its_file_is_named(music, capsys):
    text = "path,label,split,start,stop\n0.wav,a,train,1,9\n1.wav,b,valid,,\n"
    assert build(music, text, "--kind", "multi-class") == 1
    assert "0.wav: the part from 1 to 9 s is not within" in capsys.readouterr().err
    assert build(music, text.replace("1,9", "1,1.02"), "--kind", "multi-class") == 1
    assert "0.wav: the part from 1 to 1.02 s is shorter than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--workers", "0", "must be at least 1"),
        ("--separator", "", "must be a character"),
        ("--max-missing", "nan", "must be from 0 to 1"),
        ("--max-missing", "10", "must be from 0 to 1"),
    ],
)
def test_values_that_options_do_not_have(music, capsys, option, value, said):
    with pytest.raises(SystemExit):
        build(music, table(*"aabbab"), "--kind", "multi-label", option, value)
    assert f"argument {option}: {said}" in capsys.readouterr().err
