"""Label files, dictionaries, and what is said when they do not fit the audio."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from music_ssl_fairseq.data import label_check
from music_ssl_fairseq.data.audio_identity import note_names
from music_ssl_fairseq.data.label_check import check_labels
from music_ssl_fairseq.data.label_metadata import label_again, labels_beside, read_label_rate
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest, write_manifest
from music_ssl_fairseq.data.units import UnitDictionary
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime import files
from music_ssl_fairseq.runtime.files import checksum


def write_km(path, lines):
    path.write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
    return path


def write_dict(path, k):
    path.write_text("".join(f"{unit} 1\n" for unit in range(k)))
    return path


def random_lines(rng, lengths, k=2_000):
    return [rng.integers(0, k, length) for length in lengths]


LENGTHS = [0, 1, 500, 1_023, 1_024, 1_025, 3_000, 0, 2_048, 7]


def test_store_against_plain_parsing(tmp_path):
    rng = np.random.default_rng(0)
    lines = random_lines(rng, LENGTHS)
    store = LabelStore(write_km(tmp_path / "train.km", lines))
    assert len(store) == len(lines)
    assert store.counts.tolist() == LENGTHS
    for track, line in enumerate(lines):
        np.testing.assert_array_equal(store.units(track), line)
        for _ in range(20):
            first, stop = np.sort(rng.integers(0, len(line) + 3, 2)).tolist()
            units = store.units(track, first, stop)
            np.testing.assert_array_equal(units, line[first:stop])
            assert units.dtype == np.int64


def test_only_the_units_needed_are_read(tmp_path, monkeypatch):
    lines = random_lines(np.random.default_rng(0), [100_000, 100_000])
    store = LabelStore(write_km(tmp_path / "train.km", lines))
    read_part, read = files.FileParts.read, []
    monkeypatch.setattr(
        files.FileParts,
        "read",
        lambda self, begin, count: read.append(count) or read_part(self, begin, count),
    )
    np.testing.assert_array_equal(store.units(1, 50_000, 50_500), lines[1][50_000:50_500])
    assert sum(read) == 500 * 8


@pytest.mark.parametrize(
    "text", ["1 2 3\n\n4\n", "1 2 3\r\n\r\n4\r\n", "  1 2\t3 \n \n 4 ", "1 2 3\n\n4"]
)
def test_white_space(tmp_path, text):
    (tmp_path / "x.km").write_bytes(text.encode())
    store = LabelStore(tmp_path / "x.km")
    assert store.counts.tolist() == [3, 0, 1]
    assert [store.units(i).tolist() for i in range(3)] == [[1, 2, 3], [], [4]]
    assert store.units(0, 1, 3).tolist() == [2, 3]


def test_empty_file(tmp_path):
    (tmp_path / "x.km").touch()
    assert len(LabelStore(tmp_path / "x.km")) == 0


@pytest.mark.parametrize("token", ["x7", "-1", "1.5", "nan", "é"])
def test_not_numbers(tmp_path, token):
    (tmp_path / "x.km").write_text(f"1 2 3\n4 5\n6 {token} 7\n8\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"x.km, line 3: expected cluster numbers"):
        LabelStore(tmp_path / "x.km")


def test_missing_labels(tmp_path):
    command = f"`python -m music_ssl_fairseq label --k 500 --labels {tmp_path}`"
    with pytest.raises(InputError, match=re.escape(command)):
        LabelStore(tmp_path / "train.km")
    options = {"options": "--k 9 --features deep --layer 6", "manifests": "manifests/jazz"}
    (tmp_path / "metadata.json").write_text(json.dumps(options))
    for read in (LabelStore, UnitDictionary):
        command = f"label {options['options']} --manifests manifests/jazz --labels {tmp_path}`"
        with pytest.raises(InputError, match=re.escape(command)):
            read(tmp_path / "missing")


@pytest.mark.parametrize(
    ("manifests", "labels"),
    [
        ("manifests", "labels"),
        ("a/manifests", "a/labels"),
        ("manifests/jazz", "labels/jazz"),
        ("/manifests/manifests/x", "/manifests/labels/x"),
        ("jazz/", "jazz_labels"),
    ],
)
def test_labels_have_a_place_of_their_own(manifests, labels):
    assert labels_beside(manifests) == Path(labels)


def test_pickled_store(tmp_path):
    lines = random_lines(np.random.default_rng(0), [5_000] * 20)
    pickled = pickle.dumps(LabelStore(write_km(tmp_path / "x.km", lines)))
    assert len(pickled) < 5_000
    np.testing.assert_array_equal(
        pickle.loads(pickled).units(7, 4_000, 4_100), lines[7][4_000:4_100]
    )


def test_classes_are_fairseqs(tmp_path):
    """In a dictionary out of order, as `Dictionary.finalize` leaves it."""
    from fairseq.data import Dictionary

    units = np.random.default_rng(0).permutation(50)
    path = tmp_path / "dict.km.txt"
    path.write_text("".join(f"{unit} {1_000 - i}\n" for i, unit in enumerate(units)))
    dictionary = UnitDictionary(path)
    line = np.random.default_rng(1).integers(0, 50, 300)
    expected = Dictionary.load(str(path)).encode_line(
        " ".join(map(str, line)), append_eos=False, add_if_not_exist=False
    )
    np.testing.assert_array_equal(dictionary.encode(line), expected)
    assert len(dictionary.dictionary) == 54
    assert dictionary.num_units == 50
    assert dictionary.encode(np.zeros(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("unit", [3, 11, 10**12, -1])
def test_units_outside(tmp_path, unit):
    (tmp_path / "dict.km.txt").write_text("0 1\n10 1\n2 1\n")
    dictionary = UnitDictionary(tmp_path / "dict.km.txt")
    units = np.array([0, 10, unit, 2])
    assert dictionary.outside(units).tolist() == [False, False, True, False]
    with pytest.raises(InputError, match=f"no unit {unit}"):
        dictionary.encode(units)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no unit"),
        ("0 1\na 1\n", "'a' is not a cluster number"),
        ("0 1\n-1 1\n", "'-1' is not a cluster number"),
        ("0 1\n99999999999 1\n", "not a cluster number"),
        ("0\n1\n", "not a dictionary of units"),
        ("0 1\n0 1\n", "not a dictionary of units"),
    ],
)
def test_bad_dictionaries(tmp_path, text, message):
    (tmp_path / "dict.km.txt").write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        UnitDictionary(tmp_path / "dict.km.txt")
    assert "dict.km.txt" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_dictionary(tmp_path):
    with pytest.raises(InputError, match=r"python -m music_ssl_fairseq label"):
        UnitDictionary(tmp_path / "dict.km.txt")


def test_label_rate(tmp_path):
    assert read_label_rate(tmp_path) is None
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps({"k": 500, "label_rate": 100}))
    assert read_label_rate(tmp_path) == 100.0
    for text in ("{", "[]", '{"label_rate": "fast"}', '{"label_rate": -1}'):
        metadata.write_text(text)
        with pytest.raises(InputError, match=r"metadata.json"):
            read_label_rate(tmp_path)


@pytest.fixture
def corpus(tmp_path):
    """Manifest, labels of 100 Hz and dictionary of 50 units that belong together."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20_000, 900_000, 30)
    write_manifest(tmp_path / "train.tsv", "/m", [(f"{i}.wav", n) for i, n in enumerate(lengths)])
    lines = random_lines(rng, 1 + (lengths - 400) // 160, k=50)
    write_km(tmp_path / "train.km", lines)
    write_dict(tmp_path / "dict.km.txt", 50)
    return tmp_path, lines


def check(folder, label_rate=100.0):
    store = LabelStore(folder / "train.km")
    units = UnitDictionary(folder / "dict.km.txt")
    check_labels(Manifest(folder / "train.tsv"), store, units, label_rate)


def complaint(folder, label_rate=100.0):
    with pytest.raises(InputError) as raised:
        check(folder, label_rate)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_fits_passes(corpus):
    check(corpus[0])


def test_a_line_too_few(corpus):
    folder, lines = corpus
    write_km(folder / "train.km", lines[:-1])
    assert "29 lines of labels" in complaint(folder)
    assert "30 tracks" in complaint(folder)


def test_tracks_of_equal_length_are_told_apart_by_their_names(tmp_path):
    """As clips of 30 s are, after another split."""

    def write(root, *names):
        write_manifest(tmp_path / "train.tsv", root, [(name, 16_400) for name in names])
        return Manifest(tmp_path / "train.tsv")

    manifest = write("/m", "a/1.wav", "a/2.wav", "b/3.wav")
    write_km(tmp_path / "train.km", [[0] * 101] * 3)
    write_dict(tmp_path / "dict.km.txt", 50)
    record = {"names": note_names(manifest.name, 3), "manifest_sha256": ""}
    metadata = {"label_rate": 100, "splits": {"train": record}}
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    check(tmp_path)
    write("/other", "1.flac", "2.wav.flac", "3.flac")  # moved, and converted
    check(tmp_path)
    write("/m", "shard.tar:0:9", "shard.tar:9:9", "shard.tar:18:9")
    check(tmp_path)
    for names in (("a/1.wav", "b/3.wav", "a/2.wav"), ("a/1.wav", "4.wav", "b/3.wav")):
        write("/m", *names)
        assert f"train.km, line 2: not the labels of {names[1]}" in complaint(tmp_path)


def test_labels_that_the_labeler_did_not_write(corpus):
    """Of another K-means with the same k, as a copied file has, or with one unit edited."""
    folder, lines = corpus
    record = {"sha256": {"train.km": checksum(folder / "train.km"), "train.units.npy": "gone"}}
    (folder / "metadata.json").write_text(json.dumps({"k": 50, "splits": {"train": record}}))
    check(folder)
    lines[7][100] = (lines[7][100] + 1) % 50
    write_km(folder / "train.km", lines)
    assert "train.km: not as the labeler wrote it" in complaint(folder)


def test_wrong_label_rate(corpus):
    folder, lines = corpus
    message = complaint(folder, 50.0)
    assert "label_rate is 50 but the labels fit 100: were these MFCC labels?" in message
    assert "30 of 30 tracks" in message
    write_km(folder / "train.km", [line[::2] for line in lines])
    assert "label_rate is 100 but the labels fit 50: were these labels of deep" in complaint(folder)


def test_a_track_that_changed(corpus):
    folder, lines = corpus
    lines[4] = lines[4][:-60]
    lines[9] = lines[9][:-11]
    write_km(folder / "train.km", lines)
    message = complaint(folder)
    assert "in 2 of 30 tracks, first line 5 (4.wav)" in message
    assert f"{len(lines[4])} labels" in message


def test_a_dict_that_knows_no_label(corpus):
    folder, lines = corpus
    write_km(folder / "train.km", [line + 1_000 for line in lines])
    message = complaint(folder)
    assert "every label would become UNK: this dict has k=50" in message
    assert "go up to 1049" in message


def test_a_dict_of_another_k(corpus):
    folder, lines = corpus
    write_dict(folder / "dict.km.txt", 25)
    outside = np.mean(np.concatenate(lines) >= 25)
    message = complaint(folder)
    assert f"{100 * outside:.3g} % of the labels would become UNK" in message
    assert "k=25" in message
    assert "go up to 49" in message
    write_dict(folder / "dict.km.txt", 100)
    (folder / "metadata.json").write_text('{"k": 50}')
    message = complaint(folder)
    assert "lists 100 units, but metadata.json beside it says k=50" in message


def test_large_files_are_sampled(corpus, monkeypatch):
    folder, lines = corpus
    size = (folder / "train.km").stat().st_size
    monkeypatch.setattr(label_check, "MAX_CHECKED_BYTES", size // 8)
    checked = []
    original = LabelStore.units
    monkeypatch.setattr(
        LabelStore, "units", lambda self, track: checked.append(track) or original(self, track)
    )
    check(folder)
    check(folder)
    assert 0 < len(checked) < 20
    assert checked[: len(checked) // 2] == checked[len(checked) // 2 :]
    write_km(folder / "train.km", [line + 1 for line in lines])
    assert "UNK" in complaint(folder)


def test_labels_of_another_corpus_stay(tmp_path, monkeypatch):
    """The command beside an error does not replace them, where both lie in folders of one name."""
    for name in ("jazz", "rock"):
        (tmp_path / name / "manifests").mkdir(parents=True)
    (tmp_path / "jazz" / "labels").mkdir()
    metadata = {"options": "--k 8", "manifests": "manifests"}
    (tmp_path / "jazz" / "labels" / "metadata.json").write_text(json.dumps(metadata))
    monkeypatch.chdir(tmp_path / "rock")
    labels = tmp_path / "jazz" / "labels"
    assert "--force" not in label_again(labels, "manifests")
    assert label_again(labels, tmp_path / "jazz" / "manifests").endswith("--force")
