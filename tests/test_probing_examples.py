"""The rendered probing tasks, and the folder that a run gets."""

import importlib.util
from collections import defaultdict
from pathlib import Path

import pytest

from hydra_plugins.music_ssl_fairseq_config import _slug

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def scores():
    pytest.importorskip("music21")
    spec = importlib.util.spec_from_file_location(
        "open_scores", EXAMPLES / "probing/open_scores.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_chorale_is_in_one_split_in_all_its_keys(scores, tmp_path):
    plan = scores.songs(tmp_path, count=40, keys=3, seed=0)
    assert len({song.path for _, song in plan}) == 120
    splits = defaultdict(set)
    for split, song in plan:
        splits[song.chorale].add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "valid", "test"}


def test_a_transposed_song_has_the_transposed_key(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "declared_key", lambda chorale: (9, "minor"))
    labels = {}
    for transposition in (-6, 0, 4):
        path = tmp_path / f"{transposition}.flac"
        path.touch()  # what is there is not rendered again
        song = scores.Song(path, "bach/bwv1", transposition, "00_organ", (0, 0))
        labels[transposition] = scores.render_song(song, 5)
    assert labels == {-6: "Eb minor", 0: "A minor", 4: "Db minor"}


def test_the_declared_key_is_the_score_s(scores):
    assert scores.declared_key("bach/bwv269") == (7, "major")


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("runs/music2vec/short/checkpoints/checkpoint_best.pt", "music2vec_short_checkpoint_best"),
        ("random:runs/a/checkpoints/last.pt", "random_a_last"),
        ("random:/x/runs/music2vec/short/checkpoints/last.pt", "random_music2vec_short_last"),
        ("/models/hubert base/", "models_hubert_base"),
        ("mfcc", "mfcc"),
        ("mfcc+chroma", "mfcc+chroma"),
    ],
)
def test_a_run_s_folder_is_named_after_its_upstream(path, folder):
    assert _slug(path) == folder
