"""giantsteps-key, from the published metadata."""

import hashlib
import shutil

import mir_eval
import pytest

from manifests_tools import giantsteps
from manifests_tools.keys import KEYS, normalise_key
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.labels import ProbingSplit
from music_ssl_fairseq.probing.spec import SPLITS, read_spec
from music_ssl_fairseq.probing.writer import check_leakage
from tests.manifests_tools.golden import write_giantsteps
from tests.options import with_defaults

COUNTS = {"train": 923, "valid": 236, "test": 604}


@pytest.fixture(scope="module")
def built(stubs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("giantsteps")
    stubs.lay(folder, write_giantsteps(folder))
    with_defaults(giantsteps.key)(str(folder), out=str(folder / "out"))
    return folder


def songs(folder, split: str) -> list[str]:
    manifest = Manifest(folder / "out" / f"{split}.tsv")
    return [manifest.name(i).rpartition("/")[2].partition(".")[0] for i in range(len(manifest))]


def test_golden_counts(built):
    task = read_spec(built / "out")
    assert task.counts == task.published == COUNTS
    assert (task.kind, task.metric, task.counted) == ("key", "weighted_key_score", "songs")
    assert task.classes == KEYS
    check_leakage(built / "out")


def test_songs_and_keys_are_those_of_the_annotations(built):
    task = read_spec(built / "out")
    annotations = built / "giantsteps-mtg-key-dataset" / "annotations" / "annotations.txt"
    stated = {
        song: key.strip()
        for song, key, confidence in (
            line.split("\t") for line in annotations.read_text().splitlines()[1:]
        )
        if confidence.strip() == "2"
    }
    for split in SPLITS:
        data = ProbingSplit(built / "out", split, task)
        for song, target in zip(songs(built, split), data.targets, strict=True):
            if split == "test":
                file = f"giantsteps-key-dataset/annotations/key/{song}.LOFI.key"
                key = (built / file).read_text()
            else:
                key = stated[song]
            # mir_eval reads the same key, whatever its spelling.
            assert mir_eval.key.weighted_score(key, task.classes[target]) == 1


def test_no_artist_is_on_both_sides(built):
    file = built / "giantsteps-mtg-key-dataset" / "annotations" / "beatport_metadata.txt"
    artists = {
        line.split("\t")[0]: set(line.split("\t")[1].split(", "))
        for line in file.read_text().splitlines()[1:]
    }
    train = set().union(*(artists[song] for song in songs(built, "train")))
    valid = set().union(*(artists[song] for song in songs(built, "valid")))
    assert not train & valid


def test_whoever_shares_a_song_with_a_validating_artist_validates():
    def part(name: str) -> int:
        return int(hashlib.sha1(name.lower().encode()).hexdigest(), 16) % 116

    names = [f"DJ {i}" for i in range(400)]
    train = [name for name in names if part(name) < 100]
    valid = [name for name in names if part(name) >= 100]
    assert 30 < len(valid) < 80
    chain = [[train[0], train[1]], [train[2], train[1]], [train[2], valid[0]], [train[3]]]
    expected = {*train[:3], valid[0]}
    assert giantsteps.validating_artists(chain) == expected
    assert giantsteps.validating_artists(reversed(chain)) == expected


def test_metadata_elsewhere_and_archive_names(stubs, tmp_path):
    names = write_giantsteps(tmp_path / "metadata")
    for name in ("giantsteps-key-dataset", "giantsteps-mtg-key-dataset"):
        shutil.move(tmp_path / "metadata" / name, tmp_path / "metadata" / f"{name}-master")
    stubs.lay(tmp_path / "audio", [name.replace(".mp3", ".wav") for name in names])
    with_defaults(giantsteps.key)(
        str(tmp_path / "audio"), out=str(tmp_path / "out"), metadata=str(tmp_path / "metadata")
    )
    assert read_spec(tmp_path / "out").counts == COUNTS


def test_what_is_not_there_is_named_with_its_source(tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match=r"no folder giantsteps-mtg-key-dataset .*https://github"):
        with_defaults(giantsteps.key)(str(tmp_path), out=out)
    write_giantsteps(tmp_path)
    annotations = tmp_path / "giantsteps-mtg-key-dataset" / "annotations"
    (annotations / "annotations.txt").rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"annotations\.txt is not in .*part of https://github"):
        with_defaults(giantsteps.key)(str(tmp_path), out=out)
    (tmp_path / "moved").rename(annotations / "annotations.txt")
    with pytest.raises(InputError, match="train: 923 of 923 labelled files cannot be used"):
        with_defaults(giantsteps.key)(str(tmp_path), out=out)
    key = sorted(tmp_path.glob("giantsteps-key-dataset/annotations/key/*"))[0]
    key.write_text("H minor")
    with pytest.raises(InputError, match=r"\.LOFI\.key: 'H minor' is not a key"):
        with_defaults(giantsteps.key)(str(tmp_path), out=out)


@pytest.mark.parametrize(
    ("text", "key"),
    [("C# minor", "Db minor"), ("Cb major", "B major"), ("e# MINOR", "F minor"),
     ("A:min", "A minor"), ("Bb maj", "Bb major"), (" G minor\n", "G minor")],
)  # fmt: skip
def test_spellings_of_keys(text, key):
    assert normalise_key(text) == key
    assert key in KEYS


@pytest.mark.parametrize(
    "text", ["", "-", "C", "minor", "C minor / A major", "C##  minor", "H maj"]
)
def test_what_is_not_one_key(text):
    with pytest.raises(ValueError, match="is not a key"):
        normalise_key(text)
