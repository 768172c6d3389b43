"""MFCC and log-mel against torchaudio's port of Kaldi, and MFCC against fairseq's own recipe."""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from music_ssl_fairseq import audio
from music_ssl_fairseq.features.kaldi import LogMel
from music_ssl_fairseq.features.mfcc import Mfcc, deltas
from tests.audio_files import tone, write_tone


def kaldi(waveform: np.ndarray, num_ceps: int = 13) -> np.ndarray:
    return torchaudio.compliance.kaldi.mfcc(
        torch.from_numpy(waveform)[None],
        sample_frequency=16000,
        use_energy=False,
        num_ceps=num_ceps,
    ).numpy()


def waveforms() -> dict[str, np.ndarray]:
    music = tone(3.0)[:, 0]
    rng = np.random.default_rng(0)
    return {
        "music": music,
        "quiet": music * np.float32(1e-3),
        "off centre": music * np.float32(0.1) + np.float32(0.1),
        "clipped noise": np.clip(rng.standard_normal(20_000), -1, 1).astype(np.float32),
        "digital silence inside": np.concatenate([music, np.zeros(8000, np.float32), music]),
        "one frame": music[:400],
    }


@pytest.mark.parametrize("num_ceps", [13, 20])
@pytest.mark.parametrize("name", waveforms())
def test_equals_kaldi(name, num_ceps):
    waveform = waveforms()[name]
    ours, reference = Mfcc(num_ceps).cepstra(waveform), kaldi(waveform, num_ceps)
    assert ours.dtype == np.float32
    assert ours.shape == reference.shape
    assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()


@pytest.mark.parametrize("name", waveforms())
def test_log_mel_equals_kaldis_fbank(name):
    waveform = waveforms()[name]
    reference = torchaudio.compliance.kaldi.fbank(
        torch.from_numpy(waveform)[None], num_mel_bins=80, sample_frequency=16000
    ).numpy()
    ours = LogMel().features(waveform)
    assert ours.shape == reference.shape
    # Where there is hardly any energy, rounding of the spectrum is much of it.
    loud = reference > reference.max() - np.log(1e8)
    assert loud.mean() > 0.5
    assert np.abs(ours - reference)[loud].max() <= 0.02


def test_deltas_equal_torchaudio():
    values = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    reference = torchaudio.functional.compute_deltas(torch.from_numpy(values.T)).numpy().T
    np.testing.assert_allclose(deltas(values), reference, atol=1e-6)


def test_equals_fairseqs_recipe(tmp_path, monkeypatch):
    import fairseq

    # Imported by the recipe to write its output, which is not asked for here.
    unused = types.ModuleType("npy_append_array")
    vars(unused)["NpyAppendArray"] = None
    monkeypatch.setitem(sys.modules, "npy_append_array", unused)
    recipe = Path(fairseq.__file__).parent / "examples" / "hubert" / "simple_kmeans"
    monkeypatch.syspath_prepend(recipe)
    reader = importlib.import_module("dump_mfcc_feature").MfccFeatureReader(16000)
    path = write_tone(tmp_path / "a.flac", 2.5)
    # Its own reader wants an older torchaudio.
    monkeypatch.setattr(reader, "read_audio", lambda path, ref_len: soundfile.read(path)[0])
    reference = reader.get_feats(str(path)).numpy()
    ours = Mfcc().features(audio.read(path))
    assert ours.shape == reference.shape == (248, 39)
    assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()


@pytest.mark.parametrize("num_samples", [0, 399, 400, 559, 560, 41_359, 41_360])
def test_one_row_a_frame(num_samples):
    waveform = np.random.default_rng(0).standard_normal(num_samples).astype(np.float32)
    frames = Mfcc().features(waveform)
    assert frames.shape == (Mfcc.grid.num_frames(num_samples), 39)
    assert frames.dtype == np.float32


def test_waveform_is_left_as_it_was():
    waveform = tone(1.0)[:, 0]
    before = waveform.copy()
    Mfcc().features(waveform)
    np.testing.assert_array_equal(waveform, before)
