"""The rendered probing tasks, and the folder that a run gets."""

import dataclasses
import importlib.util
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from hydra_plugins.music_ssl_fairseq_config import _slug
from music_ssl_fairseq.probing.predictions import Predictions

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str):
    pytest.importorskip("music21")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"probing/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scores():
    return load("open_scores")


@pytest.fixture(scope="module")
def corpus():
    return load("open_corpus")


def test_a_chorale_is_in_one_split_in_all_its_keys(scores, tmp_path):
    plan = scores.songs(tmp_path, count=40, keys=3, seed=0)
    assert len({track.path for _, track in plan}) == 120
    splits = defaultdict(set)
    for split, track in plan:
        splits[track.score].add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "valid", "test"}


def test_a_transposed_song_has_the_transposed_key(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "declared_key", lambda chorale: (9, "minor"))
    (tmp_path / "audio").mkdir()
    labels = {}
    for transposition in (-6, 0, 4):
        track = scores.song(tmp_path, "bach/bwv1", transposition, "00_organ", (0, 0))
        track.path.touch()  # what is there is not rendered again
        labels[transposition] = scores.render_song(track, 5)
    assert labels == {-6: "Eb minor", 0: "A minor", 4: "Db minor"}


def test_the_corpus_to_train_on_has_no_score_of_a_probing_task(scores, corpus, tmp_path):
    probed = {track.score for _, track in scores.songs(tmp_path, count=10_000, keys=1, seed=0)}
    tracks = corpus.plan(tmp_path, 300, seed=0)
    trained = {track.score for track in tracks}
    assert len(probed) > 300
    assert len(trained) > 200
    assert not trained & probed
    assert not [score for score in trained if score.startswith(("bach", "choraleAnalyses"))]


def test_the_corpus_depends_on_the_seed_alone(corpus, tmp_path):
    tracks = corpus.plan(tmp_path, 60, seed=1)
    assert corpus.plan(tmp_path, 20, seed=1) == tracks[:20]
    assert corpus.plan(tmp_path, 60, seed=2) != tracks
    folders = defaultdict(set)
    for track in tracks:
        folders[track.score].add(track.path.parent)
    assert all(len(found) == 1 for found in folders.values())


def test_a_track_may_begin_within_its_score(corpus, tmp_path):
    tracks = corpus.plan(tmp_path, 50, seed=0)
    tune = next(track for track in tracks if track.score.startswith("ryansMammoth"))
    whole = corpus.render_scores.midi_of(dataclasses.replace(tune, start=0.0), 1000)
    half = corpus.render_scores.midi_of(dataclasses.replace(tune, start=0.5), 1000)
    for notes, rest in zip(whole.instruments, half.instruments, strict=True):
        pitches = [note.pitch for note in notes.notes]
        kept = [note.pitch for note in rest.notes]
        assert 0 < len(kept) < len(pitches)
        assert pitches[-len(kept) :] == kept
    assert half.get_end_time() == pytest.approx(whole.get_end_time() / 2, rel=0.1)


def test_the_verdict_tells_better_from_equal(tmp_path):
    verdict = load("open_verdict")
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 400)
    names = [f"{i // 4:03d}_{i % 4}.flac" for i in range(400)]
    rights = {"mfcc": 0.9, "chroma": 0.5, "trained": 0.7, "random": 0.68}
    for task in ("key", "instrument"):
        for run, share in rights.items():
            folder = tmp_path / task / run
            folder.mkdir(parents=True)
            about = {"metric": "accuracy", "classes": ["a", "b"]}
            (folder / "test.json").write_text(json.dumps(about))
            said = np.where(rng.random(400) < share, targets, 1 - targets)
            predictions = Predictions(names, np.arange(400), np.eye(2)[said], targets, targets)
            predictions.save(folder / "test_predictions.npz")
    said = [line.rpartition(": ")[2] for line in verdict.verdict(tmp_path)]
    assert said == ["worse", "better", "not told apart", "not told apart"]


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
