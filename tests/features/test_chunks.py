"""Features of many chunks: read ahead by threads as for a GPU, and one by one."""

import json
from dataclasses import replace

import numpy as np
import pytest

from music_ssl_fairseq.data.manifest import write_manifest
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.features import FeatureSpec
from music_ssl_fairseq.features.chunk_features import FeatureWork, Request, Track
from music_ssl_fairseq.label.__main__ import main
from music_ssl_fairseq.label.nearest_centroid import Labeler
from music_ssl_fairseq.label.sample import SampledTrack, SampleFeatures
from tests import checkpoints
from tests.audio_files import write_tone

SECONDS = [3, 1, 2, 4, 1, 2, 3, 1, 2, 3, 1]


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> FeatureSpec:
    folder = tmp_path_factory.mktemp("model")
    path = checkpoints.write(folder / "m.pt", "hubert", checkpoints.MODELS["hubert"]())
    return FeatureSpec("deep", str(path), 2)


@pytest.fixture(scope="module")
def tracks(tmp_path_factory) -> list[Track]:
    folder = tmp_path_factory.mktemp("music")
    return [
        Track(str(write_tone(folder / f"{i}.wav", seconds, seed=i)), seconds * 16_000)
        for i, seconds in enumerate(SECONDS)
    ]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Read ahead, and take the features of several chunks at once."""

    def call(job, items) -> list:
        with monkeypatch.context() as patch:
            patch.setattr(FeatureWork, "_on_gpu", True)
            return list(job.stream(iter(items)))

    return call


class Single(FeatureWork):
    """A part is one request, and its result the features."""

    def requests(self, part):
        return [part]

    def collect(self, part, features):
        return next(features, None)


def test_reading_ahead_changes_nothing(deep, tracks, as_on_a_gpu):
    gone = Track("gone.wav", 16_000)
    requests = [Request(track, 0, 40) for track in [*tracks[:3], gone, *tracks[3:]]]
    groups = [requests[:2], [], requests[2:9], requests[9:], []]
    found, one_by_one = as_on_a_gpu(Single(deep), groups), list(Single(deep).stream(groups))
    sizes = [len(group) for group in groups]
    assert sizes == [len(group) for group in found] == [len(group) for group in one_by_one]
    one_by_one, found = ([x for group in each for x in group] for each in (one_by_one, found))
    assert isinstance(found[3], AudioError)
    assert isinstance(one_by_one[3], AudioError)
    for i in set(range(len(requests))) - {3}:
        np.testing.assert_allclose(found[i].numpy(), one_by_one[i], atol=1e-5)


def test_jobs_of_a_gpu(deep, tracks, as_on_a_gpu):
    centroids = np.random.default_rng(0).normal(size=(9, 32)).astype(np.float32)
    (many,) = as_on_a_gpu(Labeler(deep, (centroids,)), [tracks])
    single = [Labeler(deep, (centroids,))([track])[0] for track in tracks]
    for found, expected in zip(many, single, strict=True):
        assert found.dtype == np.uint16
        assert (found == expected).mean() > 0.98
    parts = [SampledTrack(track, np.array([3, 20, 40])) for track in tracks]
    (many,) = as_on_a_gpu(SampleFeatures(deep), [parts])
    for found, part in zip(many, parts, strict=True):
        np.testing.assert_allclose(found, SampleFeatures(deep)([part])[0], atol=1e-5)


def test_a_job_on_a_gpu_of_its_own(deep):
    labeler = Labeler(deep, (np.zeros((2, 32), np.float32),))
    assert labeler.on("cuda:1").features == replace(deep, device="cuda:1")
    assert SampleFeatures(deep).on("cuda:1").features.device == "cuda:1"


def test_deep_labels(deep, tracks, tmp_path, labels_here):
    lines = [(track.path, track.num_samples) for track in tracks]
    write_manifest(tmp_path / "train.tsv", "/", lines)
    arguments = [
        *("--manifests", str(tmp_path), "--labels", str(tmp_path / "labels"), "--k", "6"),
        *("--features", "deep", "--checkpoint", str(deep.checkpoint), "--layer", "2"),
        *("--workers", "1", "--device", "cpu", "--report"),
    ]
    assert main(arguments) == 0
    metadata = json.loads((tmp_path / "labels" / "metadata.json").read_text())
    assert (metadata["label_rate"], metadata["layer"], metadata["dimension"]) == (50, 2, 32)
    lengths = [len(x.split()) for x in (tmp_path / "labels" / "train.km").read_text().splitlines()]
    assert lengths == [50 * seconds - 1 for seconds in SECONDS]
    assert "50 labels per second" in (tmp_path / "labels" / "report.html").read_text()
