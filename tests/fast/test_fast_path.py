"""The fast path's pieces equal the plain operations they replace."""

import threading

import pytest
import torch
from torch.nn import functional as F

from music_ssl_fairseq.fast.block_conv import block_conv
from music_ssl_fairseq.fast.compilation import ShapeGate
from music_ssl_fairseq.fast.conv_stack import conv_channels_last
from music_ssl_fairseq.fast.dispatch import Execution
from music_ssl_fairseq.fast.first_conv import fold_moments, folded_first_conv, window_moments
from tests import tiny


@pytest.mark.parametrize("frames", [1, 15, 16, 49])
@pytest.mark.parametrize("kernel", [3, 19, 128])
@pytest.mark.parametrize("width", [24, 8])
def test_block_conv_is_a_grouped_convolution(frames, kernel, width):
    x = torch.randn(2, frames, 24, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(width, 6, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(width, dtype=torch.float64)
    ours = block_conv(x, weight, bias, 4)
    plain = F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=4)
    plain = plain[..., :frames].transpose(1, 2)
    torch.testing.assert_close(ours, plain)
    grad = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), grad),
        torch.autograd.grad(plain, (x, weight), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (5, 2), (2, 3), (8, 8)])
@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("length", [30, 31, 33])
def test_conv_channels_last_is_a_convolution(kernel, stride, channels, length):
    x = torch.randn(2, length, channels, dtype=torch.float64)
    weight = torch.randn(5, channels, kernel, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    plain = F.conv1d(x.transpose(1, 2), weight, bias, stride).transpose(1, 2)
    torch.testing.assert_close(conv_channels_last(x, weight, bias, stride), plain)


def test_shape_gate_chooses_the_shape_that_keeps_coming():
    gate = ShapeGate()
    assert not gate("train", (3, 100))  # the rest of an epoch, first by chance
    assert not gate("train", (8, 100))
    assert gate("train", (8, 100))
    assert not gate("train", (3, 100))
    assert gate("train", (8, 100))
    assert not gate("valid", (8, 100))


def test_state_dicts_do_not_depend_on_the_path():
    assert set(tiny.music_hubert(fast="on").state_dict()) == set(
        tiny.music_hubert(fast="off").state_dict()
    )


@pytest.mark.parametrize(("setting", "convolutions"), [("on", 1 + 4), ("off", 0)])
def test_the_execution_of_the_call_decides_for_every_convolution(
    monkeypatch, setting, convolutions
):
    model = tiny.music_hubert(encode="visible", fast="off" if setting == "on" else "on")
    model.execution = Execution(setting)
    called = []
    grouped = Execution.grouped_conv
    monkeypatch.setattr(Execution, "grouped_conv", lambda *args: called.append(0) or grouped(*args))
    batch = tiny.batch()
    model(target=batch.pop("units") + 4, **batch)
    assert len(called) == convolutions  # of positions and of the decoder


def test_folded_moments_are_the_group_norm():
    waveform = torch.randn(2, 800).cumsum(-1)  # mostly low frequencies, as music
    weight = torch.randn(6, 1, 10)
    scale, shift = torch.randn(6), torch.randn(6)
    moments = window_moments(waveform, 10, 5)
    filters, shifts = fold_moments(*moments, weight, scale, shift, 1e-5)
    plain = F.group_norm(
        F.conv1d(waveform.double().unsqueeze(1), weight.double(), stride=5),
        *(6, scale.double(), shift.double()),
    )
    windows = waveform.unfold(-1, 10, 5)
    folded = torch.einsum("btk,bck->bct", windows, filters) + shifts.unsqueeze(-1)
    torch.testing.assert_close(folded.double(), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lead", [0, 1])
def test_folded_first_layer_is_convolution_shift_and_gelu(lead):
    waveform, filters, shifts = torch.randn(2, 99), torch.randn(2, 6, 10), torch.randn(2, 6)
    windows = waveform.unfold(-1, 10, 5)
    plain = F.gelu(windows @ filters.transpose(1, 2) + shifts.unsqueeze(1))
    ours = folded_first_conv(waveform, filters, shifts, 5, lead)
    torch.testing.assert_close(ours, F.pad(plain, (0, 0, lead, 0)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("masks", [0, 1, 3])  # 0: encode=all
@pytest.mark.parametrize("family", ["music_hubert", "music2vec"])
def test_compiled_steps_equal_plain_ones_on_a_gpu(family, masks, monkeypatch):
    """Losses and gradients of the fast path, compiled, against the plain one, both fp32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    sizes = {"conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2"}
    if masks:
        sizes |= {"encode": "visible", "decoder_input_dropout": 0.0}
    gradients = []
    for fast in ("off", "on"):
        torch.manual_seed(0)
        model = getattr(tiny, family)(fast=fast, precision="fp32", **sizes).cuda()
        model.set_num_updates(0)
        data = {name: tensor.cuda() for name, tensor in tiny.batch().items()}
        units = data.pop("units")
        if masks:
            order = torch.rand(masks * len(units), units.size(1), device="cuda").argsort(1)
            data |= {"mask": order < 12, "num_visible": units.size(1) - 12}
        if family == "music_hubert":
            data["target"] = units + 4
        for _ in range(4):  # the second is compiled; later ones replay what it captured
            model.zero_grad()
            if family == "music2vec":  # replayed targets follow the teacher's weights and the crops
                teacher = (model.teacher or model.make_teacher()).model
                torch._foreach_mul_([p.data for p in teacher.parameters()], 1.01)
                data["source"] = data["source"].roll(1, 0)
            output = model(**data)
            if family == "music_hubert":
                loss = F.cross_entropy(output["logits_m"][0], output["target_m"][:, 0])
                loss = loss + output["features_pen"]
            else:
                loss = F.mse_loss(output["prediction"], output["teacher_target"])
            loss.backward()
        gradients.append([loss.detach(), *[p.grad for p in model.parameters()]])
    for plain, fast in zip(*gradients, strict=True):
        assert (fast - plain).norm() <= 2e-3 * plain.norm() + 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["music_hubert", "music2vec"])
def test_the_first_step_compiles_ahead_on_a_gpu(family, monkeypatch):
    """The second step, which is the first fast one, finds all kernels compiled by other threads."""
    from triton.runtime.jit import JITFunction

    names = []
    compile_now = JITFunction._do_compile

    def record(self, *args, **options):
        names.append((threading.current_thread().name.split("_")[0], self.__name__))
        return compile_now(self, *args, **options)

    monkeypatch.setattr(JITFunction, "_do_compile", record)
    # Sizes that no other test has, for which no kernel is compiled in this process.
    channels, width, heads = (64, 96, 3) if family == "music_hubert" else (128, 80, 5)
    layers = f"[({channels},10,5)] + [({channels},3,2)] * 4 + [({channels},2,2)] * 2"
    sizes = {"conv_feature_layers": layers, "encoder_embed_dim": width}
    sizes |= {"encoder_ffn_embed_dim": 144, "encoder_attention_heads": heads}
    model = getattr(tiny, family)(fast="on", precision="bf16", **sizes).cuda()
    model.set_num_updates(0)
    data = {name: tensor.cuda() for name, tensor in tiny.batch().items()}
    units = data.pop("units")
    if family == "music_hubert":
        data["target"] = units + 4
    for _ in range(2):
        begin = len(names)
        output = model(**data)
        result = output["prediction"] if family == "music2vec" else output["logits_m"][0]
        result.float().square().mean().backward()
    first, second = names[:begin], names[begin:]
    assert len([name for thread, name in first if thread == "compile"]) >= 10
    assert [name for thread, name in second if thread != "compile"] == []
