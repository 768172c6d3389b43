"""Probing data: what is written is read again, and every wrong line is named."""

import json

import numpy as np
import pytest

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.labels import ProbingSplit
from music_ssl_fairseq.probing.spec import KINDS, ProbingSpec, read_spec, write_spec
from music_ssl_fairseq.probing.writer import Example, check_leakage, remove_split, write_split

GENRE = ProbingSpec("genre", "multi-class", "accuracy", ("jazz", "pop", "rock"))
TAGS = ProbingSpec("tags", "multi-label", "macro_roc_auc", ("fast", "slow", "sänger"))
MOOD = ProbingSpec("mood", "regression", "r2", targets=("arousal", "valence"))
BEAT = ProbingSpec("beat", "beats", "f_measure")

SECOND = 16_000


def write(folder, *labels: tuple[str, ...], **options) -> None:
    examples = [
        Example(f"{i}.wav", 10 * SECOND, label, **options) for i, label in enumerate(labels)
    ]
    write_split(folder, "train", "/music", examples)


def test_classes(tmp_path):
    write(tmp_path, ("pop",), ("jazz",), ("pop",))
    split = ProbingSplit(tmp_path, "train", GENRE)
    assert split.targets.tolist() == [1, 0, 1]
    assert split.targets.dtype == np.int64
    assert split.groups == ["0.wav", "1.wav", "2.wav"]
    assert split.group_index.tolist() == [0, 1, 2]
    assert split.segments.tolist() == [[0, 10 * SECOND]] * 3
    assert Manifest(tmp_path / "train.tsv").path(1) == "/music/1.wav"
    assert not (tmp_path / "train.segments").exists()
    assert not (tmp_path / "train.groups").exists()


def test_tags_may_be_none_one_or_several(tmp_path):
    write(tmp_path, ("slow", "fast"), (), ("sänger",), ())
    split = ProbingSplit(tmp_path, "train", TAGS)
    assert split.targets.tolist() == [
        [True, True, False], [False] * 3, [False, False, True], [False] * 3,
    ]  # fmt: skip


def test_numbers_are_kept_as_written(tmp_path):
    write(tmp_path, ("5.25", "-3e-2"), ("1", "9"))
    assert ProbingSplit(tmp_path, "train", MOOD).targets.tolist() == [[5.25, -0.03], [1, 9]]


def test_beats_with_and_without_positions(tmp_path):
    write(tmp_path, ("0.5/4", "1.25/1"), ("0", "9.99"))
    split = ProbingSplit(tmp_path, "train", BEAT)
    assert split.beats[0].times.tolist() == [0.5, 1.25]
    assert split.beats[0].positions.tolist() == [4, 1]
    assert split.beats[1].positions.tolist() == [0, 0]
    assert split.targets.shape == (2, 0)


def test_segments_and_groups(tmp_path):
    examples = [
        Example("a.wav", 10 * SECOND, ("pop",), (0.0, 2.5), "song a"),
        Example("a.wav", 10 * SECOND, ("pop",), (2.5, 10.05), "song a"),
        Example("b.wav", 7 * SECOND, ("rock",)),
    ]
    write_split(tmp_path, "train", "/music", examples)
    split = ProbingSplit(tmp_path, "train", GENRE)
    # A segment may end a little after its file, as labels may; it is cut there.
    assert (split.segments / SECOND).tolist() == [[0, 2.5], [2.5, 10], [0, 7]]
    assert split.groups == ["song a", "song a", "b.wav"]
    assert split.group_index.tolist() == [0, 0, 1]


def test_writing_again_leaves_nothing_behind(tmp_path):
    write(tmp_path, ("pop",), ("jazz",), segment=(0, 1), group="song")
    assert (tmp_path / "train.segments").exists()
    write(tmp_path, ("pop",), ("jazz",))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["train.labels", "train.tsv"]
    remove_split(tmp_path, "train")
    assert list(tmp_path.iterdir()) == []


def test_carriage_returns_are_ignored(tmp_path):
    write(tmp_path, ("pop",), ("jazz",))
    (tmp_path / "train.labels").write_bytes(b"pop\r\njazz\r\n")
    assert ProbingSplit(tmp_path, "train", GENRE).targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("task", "lines", "expected"),
    [
        (GENRE, "pop\npolka\n", r"line 2 \(1\.wav\): 'polka' is not one of the 3 classes"),
        (GENRE, "pop\n\n", "line 2 .* no label, but the task is multi-class"),
        (GENRE, "pop\npop\trock\n", "line 2 .* 2 labels, but the task is multi-class"),
        (GENRE, "pop\n", "1 lines, but .*train.tsv lists 2 files"),
        (GENRE, "pop\npop\npop\n", "3 lines, but"),
        (GENRE, "", "0 lines, but"),
        (TAGS, "fast\nSlow\n", r"line 2 .* 'Slow' is not one"),
        (TAGS, "\n\n", "not one label in 2 lines"),
        (MOOD, "1\t2\n3\n", "line 2 .* 1 numbers, the targets are arousal, valence"),
        (MOOD, "1\t2\n3\thigh\n", "line 2 .* not a finite number: .*high"),
        (MOOD, "1\t2\n3\tnan\n", "line 2 .* not a finite number"),
        (BEAT, "1\t2\n2\t1\n", "line 2 .* not ascending"),
        (BEAT, "1\t2\n-1\t1\n", "line 2 .* not ascending from 0"),
        (BEAT, "1\t2\n1\t500\n", r"line 2 .* a beat at 500, .* has 10\.00 s: are these seconds\?"),
        (BEAT, "1\t2\none\n", "line 2 .* not a beat"),
        (BEAT, "1\t2\n1/one\n", "line 2 .* not a beat"),
        (BEAT, "1\t2\n\n", "line 2 .* no beat"),
        (BEAT, "6\n7\n", "not one beat is within its segment"),
    ],
)
def test_wrong_labels_are_named_with_their_line(tmp_path, task, lines, expected):
    write(tmp_path, ("pop",), ("jazz",), segment=(0, 5))
    (tmp_path / "train.labels").write_text(lines)
    with pytest.raises(InputError, match=expected) as error:
        ProbingSplit(tmp_path, "train", task)
    assert "train.labels" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_split_that_cannot_be_scored_is_refused_as_it_is_read(tmp_path):
    for lines in ([("1", "2")], [("1", "2"), ("3", "2")]):
        write(tmp_path, *lines)
        with pytest.raises(InputError, match=r"train\.labels: .* is [12] in all . lines, so R2"):
            ProbingSplit(tmp_path, "train", MOOD)
    write(tmp_path, ("fast", "slow"), ("fast", "slow"))
    with pytest.raises(InputError, match=r"train\.labels: all 2 lines have the same labels"):
        ProbingSplit(tmp_path, "train", TAGS)
    write(tmp_path, ("pop",), ("jazz",), group="song")
    with pytest.raises(InputError, match=r"train\.labels, line 2 .*another label than other parts"):
        ProbingSplit(tmp_path, "train", GENRE)


@pytest.mark.parametrize("line", ["0", "0\t11", "3\t3", "5\t4", "-1\t4", "10\t10.05", "a\tb", ""])
def test_wrong_segments_are_named_with_their_line(tmp_path, line):
    write(tmp_path, ("pop",), ("jazz",), segment=(0, 1))
    (tmp_path / "train.segments").write_text(f"0\t1\n{line}\n")
    with pytest.raises(InputError, match=r"train\.segments, line 2 \(1\.wav\)"):
        ProbingSplit(tmp_path, "train", GENRE)


def test_a_split_without_labels_or_manifest(tmp_path):
    write(tmp_path, ("pop",))
    (tmp_path / "train.labels").unlink()
    with pytest.raises(InputError, match=r"train\.labels: no such file, so .*train\.tsv has no"):
        ProbingSplit(tmp_path, "train", GENRE)
    with pytest.raises(InputError, match=r"test\.tsv: no such manifest"):
        ProbingSplit(tmp_path, "test", GENRE)


def test_a_file_in_two_splits_is_leakage(tmp_path):
    write(tmp_path, ("pop",), ("jazz",))
    write_split(tmp_path, "valid", "/music", [Example("2.wav", SECOND, ("pop",))])
    check_leakage(tmp_path)
    # Another root and name lead to the same file.
    write_split(tmp_path, "test", "/", [Example("music/x/../1.wav", SECOND, ("pop",))])
    with pytest.raises(InputError, match=r"/music/1\.wav is in train and in test: leakage"):
        check_leakage(tmp_path)


def test_a_song_in_two_splits_is_leakage(tmp_path):
    for split in ("train", "valid"):
        write_split(tmp_path, split, "/m", [Example(f"{split}.wav", SECOND, ("pop",), None, "s")])
    with pytest.raises(InputError, match="group s is in train and in valid: leakage"):
        check_leakage(tmp_path)


def test_equal_names_below_different_roots_are_different_files(tmp_path):
    for split in ("train", "valid"):
        write_split(tmp_path, split, f"/{split}", [Example("1.wav", SECOND, ("pop",))])
    check_leakage(tmp_path)


@pytest.mark.parametrize("task", [GENRE, TAGS, MOOD, BEAT])
def test_task_json_round_trip(tmp_path, task):
    write_spec(tmp_path, task)
    assert read_spec(tmp_path) == task
    assert task.num_outputs == {"genre": 3, "tags": 3, "mood": 2, "beat": 1}[task.name]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "genre"}, "unknown kind of task 'genre': one of multi-class"),
        ({"metric": "r2"}, "metric 'r2' does not fit the kind multi-class: one of accuracy"),
        ({"classes": []}, "needs `classes`"),
        ({"classes": ["a"]}, "a single class"),
        ({"classes": ["a", "a"]}, "`classes` lists 'a' twice"),
        ({"classes": "abc"}, "`classes` is not a list of texts"),
        ({"targets": ["a"]}, "has no `targets`"),
        ({"name": None}, "`name` is missing"),
        ({"counts": 3}, "`counts` does not give a number"),
    ],
)
def test_wrong_task_json(tmp_path, changes, expected):
    write_spec(tmp_path, GENRE)
    file = tmp_path / "task.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(InputError, match=rf"task\.json: .*{expected}"):
        read_spec(tmp_path)


def test_missing_or_broken_task_json(tmp_path):
    with pytest.raises(InputError, match=r"task\.json: no such file; `python -m manifests_tools"):
        read_spec(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "task.json").write_text(text)
        with pytest.raises(InputError, match=r"task\.json: (not JSON|is not an object)"):
            read_spec(tmp_path)


def test_each_kind_has_a_usual_metric():
    assert set(KINDS) == {"multi-class", "multi-label", "key", "regression", "beats"}
