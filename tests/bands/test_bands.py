"""Long filters and mel bands beside the extractor, and where a model with them can go."""

import numpy as np
import pytest
import torch

from music_ssl_fairseq import upstream
from music_ssl_fairseq.bands import LOWEST_HZ, MelBands, PitchFilters
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.export.__main__ import main as export
from music_ssl_fairseq.frames import FrameGrid
from tests import checkpoints, tiny

GRID = FrameGrid(400, 320)
PITCH = {"pitch_bands": 12, "pitch_taps": 1024}
BANDS = {**PITCH, "mel_bands": 40}


def tone(hertz, amplitude, samples=16000):
    return amplitude * torch.sin(2 * torch.pi * hertz * torch.arange(samples) / 16000)[None]


@pytest.mark.parametrize("semitone", [12, 30, 57, 71])
def test_a_tone_is_loudest_in_its_own_band_whatever_its_level(semitone):
    filters = PitchFilters(12, 4096, GRID)
    for amplitude in (0.03, 0.5):
        bands = filters(tone(LOWEST_HZ * 2 ** (semitone / 12), amplitude))[0, 20:-20]
        assert (bands.argmax(-1) == semitone).all()


def test_a_filter_gives_a_tone_its_amplitude():
    filters = PitchFilters(24, 4096, GRID)
    filters.norm = torch.nn.Identity()
    for band in (0, 50, 143):
        bands = filters(tone(LOWEST_HZ * 2 ** (band / 24), 0.25))[0, 20:-20, band]
        torch.testing.assert_close(bands, torch.full_like(bands, np.log(0.25**2)), atol=0.1, rtol=0)


def test_there_is_one_value_for_each_of_the_extractors_frames():
    filters = PitchFilters(12, 1024, GRID)
    for samples in (400, 719, 720, 16000):
        assert filters(torch.zeros(2, samples)).shape == (2, GRID.num_frames(samples), 72)
    with pytest.raises(InputError, match=r"pitch_taps is 200"):
        PitchFilters(12, 200, GRID)


def test_mel_bands_keep_the_envelope_of_a_steady_tone_which_the_group_norm_removes():
    model = tiny.music_hubert(mel_bands=40).eval()
    loud, quiet = model.extract(tone(440, 0.5)), model.extract(tone(440, 0.05))
    torch.testing.assert_close(loud[0], quiet[0], atol=0.02, rtol=0.02)
    difference = (loud[1] - quiet[1])[0, 5:-5].max(-1).values
    torch.testing.assert_close(
        difference, torch.full_like(difference, np.log(100) / 4), atol=0.01, rtol=0
    )
    assert loud[1][0, 20].argmax() == quiet[1][0, 20].argmax()


def test_mel_bands_refuse_more_bands_than_the_spectrum_has():
    with pytest.raises(InputError, match=r"model\.mel_bands is 300.* take 64"):
        MelBands(300, GRID)


def test_filters_learn_and_the_penalty_leaves_them_alone():
    model = tiny.music_hubert(**PITCH)
    batch = tiny.batch()
    output = model(target=batch.pop("units") + 4, **batch)
    output["features_pen"].backward(retain_graph=True)
    assert model.pitch_filters.filters.grad is None
    output["logits_m"][0].sum().backward()
    assert model.pitch_filters.filters.grad.abs().sum() > 0


@pytest.mark.parametrize("family", ["music_hubert", "music2vec"])
def test_a_checkpoint_comes_back_in_windows_too(tmp_path, family):
    model = getattr(tiny, family)(**BANDS).eval()
    path = checkpoints.write(tmp_path / "x.pt", family, model)
    loaded = upstream.load(path)
    waveform = torch.randn(1, 8000)
    for layer, expected in zip(loaded.layers(waveform), model.layers(waveform), strict=True):
        torch.testing.assert_close(layer, expected)
    random = upstream.random(path, seed=1)
    assert random.config["pitch_bands"] == 12
    assert random.config["mel_bands"] == 40
    assert random.fingerprint != loaded.fingerprint


def test_exports_as_a_graph_and_says_what_cannot_hold_it(tmp_path, capsys):
    small = {"encoder_layers": 1, "conv_feature_layers": "[(24,16,8)] + [(24,5,4)] * 2"}
    model = tiny.music_hubert(**BANDS, **small)
    path = checkpoints.write(tmp_path / "x.pt", "music_hubert", model)

    def status(format):
        to = ["--to", str(tmp_path / format), "--format", format]
        return export(["--checkpoint", str(path), *to])

    assert status("torch") == 0
    assert status("huggingface") == 0
    assert "opened by music_ssl_fairseq.load alone" in capsys.readouterr().out
    for format in ("fairseq", "torchaudio"):
        assert status(format) == 1
        assert "model.pitch_bands and model.mel_bands" in capsys.readouterr().err
        assert not (tmp_path / format).exists()


def test_residual_init_scales_what_layers_add():
    torch.manual_seed(0)
    plain = tiny.music_hubert()
    torch.manual_seed(0)
    small = tiny.music_hubert(residual_init=0.1)
    scaled = ("v_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")
    for (name, one), other in zip(plain.named_parameters(), small.parameters(), strict=True):
        factor = 0.1 if name.endswith(scaled) else 1.0
        torch.testing.assert_close(other, factor * one)
    tiny.fairseq_hubert().load_state_dict(small.state_dict(), strict=True)


def test_normal_units_are_nearly_orthogonal():
    def similarity(unit_init):
        units = tiny.music_hubert(200, final_dim=256, unit_init=unit_init).label_embs_concat
        units = torch.nn.functional.normalize(units, dim=-1)
        return (units @ units.t()).fill_diagonal_(0).abs().mean()

    assert similarity("uniform") > 0.7
    assert similarity("normal") < 0.1


def test_the_constant_q_head_learns_the_masked_frames():
    model = tiny.music_hubert(cqt_bands=12, pitch_taps=1024)
    assert not [name for name in model.state_dict() if name.startswith("cqt.")]
    batch = tiny.batch()
    masked = batch["mask"].flatten()
    model(target=batch.pop("units") + 4, **batch)["cqt_error"].backward()
    assert model.cqt_proj.weight.grad.any()
    target = model.cqt(batch["source"]).flatten(0, 1)[masked]
    torch.testing.assert_close(target.mean(-1), torch.zeros(len(target)), atol=1e-5, rtol=0)
    with torch.no_grad():
        model.cqt_proj.weight.zero_()
        model.cqt_proj.bias.zero_()
    silent = model(target=torch.zeros(*batch["mask"].shape, 1).long(), **batch)
    torch.testing.assert_close(silent["cqt_error"], target.square().mean(-1).sum())
