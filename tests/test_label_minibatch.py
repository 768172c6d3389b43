"""K-means in batches: nearly as good as on all frames at once, and taken up where it was."""

import json
from dataclasses import replace

import numpy as np
import pytest

from music_ssl_fairseq.data.manifest import write_manifest
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features.mfcc import Mfcc
from music_ssl_fairseq.label.__main__ import main
from music_ssl_fairseq.label.backends import FaissBackend
from music_ssl_fairseq.label.kmeans import Options, fit
from music_ssl_fairseq.label.minibatch import fit_batches, readable
from tests.audio_files import tone, write_tone


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).permutation(Mfcc().features(tone(60.0)[:, 0]))


def inertia(frames, centroids) -> float:
    return np.square(frames[:, None] - centroids).sum(-1).min(1).mean()


def test_nearly_as_good_as_all_at_once(frames):
    whole = fit(frames, Options(20), FaissBackend(1), lambda _: None)
    parts = np.array_split(frames, 6)
    first = fit_batches(iter(parts[:1]), Options(20), FaissBackend(1), lambda _: None).fit
    found = fit_batches(iter(parts), Options(20), FaissBackend(1), lambda _: None)
    assert (found.batches, found.frames) == (6, len(frames))
    assert found.counts.sum() == len(frames)
    least, most = inertia(frames, whole.centroids), inertia(frames, first.centroids)
    assert inertia(frames, found.fit.centroids) < 1.05 * least
    assert inertia(frames, found.fit.centroids) < 1.02 * most
    # A single batch after the first one: centroids are means of all frames they were nearest to.
    two = fit_batches(iter(parts[:2]), Options(20), FaissBackend(1), lambda _: None)
    units = np.square(parts[1][:, None] - first.centroids).sum(-1).argmin(1)
    counts = two.counts - np.bincount(units, minlength=20)
    assert counts.sum() == len(parts[0])
    sums = first.centroids * counts[:, None]
    np.add.at(sums, units, parts[1])
    np.testing.assert_allclose(two.fit.centroids, sums / two.counts[:, None], atol=0.05)


def test_taken_up_it_ends_the_same(frames):
    parts = np.array_split(frames, 5)
    watched = []
    whole = fit_batches(iter(parts), Options(10), FaissBackend(1), watched.append)
    for done in (1, 3):
        # A step is not kept: the first batch is done whole or not at all.
        begun = replace(watched[done - 1], fit=replace(watched[done - 1].fit, step=0))
        rest = fit_batches(iter(parts[done:]), Options(10), FaissBackend(1), lambda _: None, begun)
        assert rest.fit.centroids.tobytes() == whole.fit.centroids.tobytes()
        assert rest.fit.curve == whole.fit.curve


def test_unreadable_parts():
    found = [np.zeros((2, 3)), AudioError("a.wav", "is bad")]
    assert len(readable(found, skip=True)) == 1
    with pytest.raises(AudioError, match="is bad"):
        readable(found, skip=False)


def test_the_command(tmp_path):
    for i in range(4):
        write_tone(tmp_path / "music" / f"{i}.wav", 3, seed=i)
    lines = [(f"{i}.wav", 48_000) for i in range(4)]
    write_manifest(tmp_path / "train.tsv", tmp_path / "music", lines)
    labels = tmp_path / "labels"
    arguments = [
        *("--manifests", str(tmp_path), "--labels", str(labels), "--k", "8", "--workers", "1"),
        *("--minibatch", "400"),
    ]
    assert main(arguments) == 0
    metadata = json.loads((labels / "metadata.json").read_text())
    assert metadata["frames_fitted"] == 4 * 298
    assert metadata["minibatch"] == 400
    assert not list(labels.glob(".work*"))
