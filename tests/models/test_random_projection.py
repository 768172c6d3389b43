"""Units from random projections."""

import pytest
import torch
import torchaudio

from music_ssl_fairseq.bands import MEL_WINDOW, MelBands
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import FrameGrid
from music_ssl_fairseq.models.random_projection import RandomProjection
from tests import tiny

GRID = FrameGrid(hop=320, window=400)


@pytest.fixture
def waveform() -> torch.Tensor:
    return torch.randn(3, 8000, generator=torch.Generator().manual_seed(0)) / 5


@pytest.fixture
def units() -> RandomProjection:
    torch.manual_seed(0)
    return RandomProjection(MelBands(64, GRID), sets=2, size=30)


@pytest.mark.parametrize("window", [400, 1184])  # of the usual extractor, and of long filters
def test_log_mel_is_torchaudios_centred_on_our_frames(waveform, window):
    grid = FrameGrid(window, GRID.hop)
    features = MelBands(64, grid)
    mel = torchaudio.transforms.MelSpectrogram(
        16000, n_fft=MEL_WINDOW, hop_length=grid.hop, n_mels=features.bands, center=False
    )
    before = (MEL_WINDOW - grid.window) // 2
    padded = torch.nn.functional.pad(waveform, (before, MEL_WINDOW - grid.window - before))
    reference = torch.log(mel(padded) + 1e-7).transpose(1, 2)
    assert reference.size(1) == grid.num_frames(waveform.size(1))
    reference = (reference - reference.mean(-1, keepdim=True)) / reference.std(
        -1, keepdim=True, correction=0
    )
    torch.testing.assert_close(features(waveform), reference, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bands", [24, 64])
def test_filters_are_torchaudios_to_the_last_digit(bands):
    spectrum = (MEL_WINDOW // 2 + 1, 0.0, 8000.0)
    expected = torchaudio.functional.melscale_fbanks(*spectrum, bands, 16_000)
    assert torch.equal(MelBands(bands, GRID).filters, expected)


def test_every_band_has_a_bin():
    assert (MelBands(64, GRID).filters.sum(0) > 0).all()


def test_units_are_the_nearest_codes(units, waveform):
    found = units(waveform)
    assert found.shape == (3, GRID.num_frames(8000), 2)
    levels = units.features(waveform).flatten(0, 1)
    levels = (levels - levels.mean(0)) / levels.var(0, correction=0).add(1e-5).sqrt()
    for number in range(2):
        projected = torch.nn.functional.normalize(levels @ units.projection[number], dim=-1)
        nearest = torch.cdist(projected, units.codes[number]).argmin(-1)
        assert (found[..., number].flatten() == nearest).float().mean() > 0.99


def test_units_are_spread_and_independent_of_loudness(units, waveform):
    found = units(waveform)
    assert len(found.unique()) == 30
    assert (units(waveform / 10) == found).float().mean() > 0.9


def test_evaluation_uses_the_statistics_of_training(units, waveform):
    trained = units(waveform)
    units.eval()
    assert torch.equal(units(waveform[:1]), trained[:1])  # alone, as in their batch
    other = RandomProjection(MelBands(64, GRID), sets=2, size=30).eval()
    other.load_state_dict(units.state_dict())
    assert torch.equal(other(waveform), trained)


@pytest.mark.parametrize("kind", ["logmel", "cqt"])
@pytest.mark.parametrize("sets", [(), (20,)])
def test_the_model_predicts_them(kind, sets):
    fields = {"projection_targets": kind, "projection_sets": 2, "projection_size": 11}
    torch.manual_seed(1)
    model = tiny.music_hubert_of(sets, pitch_taps=1024, **fields)
    batch = tiny.batch()
    target = (batch.pop("units") + 4)[..., : len(sets)]
    output = model(target=target, **batch)
    assert [x.size(-1) for x in output["logits_m"]] == [*(k + 4 for k in sets), 11, 11]
    drawn = model.random_units(batch["source"]).flatten(0, 1)[batch["mask"].flatten()]
    assert torch.equal(output["target_m"][:, len(sets) :], drawn)
    assert not [name for name, _ in model.named_parameters() if "random_units" in name]
    reference = tiny.music_hubert(20)
    extra = set(model.state_dict()) - set(reference.state_dict())
    assert all(name.startswith("random_units.") for name in extra)


def test_nothing_to_predict_is_an_error():
    with pytest.raises(InputError, match="label_dir is empty"):
        tiny.music_hubert_of(())
