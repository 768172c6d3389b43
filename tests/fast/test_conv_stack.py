"""The extractor's layers without norms equal plain convolutions and GELUs."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from music_ssl_fairseq.fast.conv_stack import rows_before, run_conv_stack
from music_ssl_fairseq.fast.dispatch import PLAIN, Execution
from music_ssl_fairseq.modules.conv_extractor import ConvExtractor

Layers = list[tuple[int, int, int]]


def convolutions(layers: Layers, channels: int, bias: bool = False) -> list[nn.Conv1d]:
    convs = []
    for dim, kernel, stride in layers:
        convs.append(nn.Conv1d(channels, dim, kernel, stride, bias=bias).double())
        channels = dim
    return convs


def plain(convs: list[nn.Conv1d], x: Tensor) -> Tensor:
    x = x.transpose(1, 2)
    for conv in convs:
        x = F.gelu(conv(x))
    return x.transpose(1, 2)


def ours(convs: list[nn.Conv1d], x: Tensor) -> Tensor:
    lead = rows_before(convs, x.size(1), x)
    return run_conv_stack(convs, F.pad(x, (0, 0, lead, 0)), lead)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "layers",
    [
        [(8, 3, 2)] * 3 + [(8, 2, 2)] * 2,
        [(6, 3, 2), (10, 3, 2)],
        [(8, 2, 2), (6, 3, 2), (8, 5, 2), (6, 3, 1), (8, 3, 2)],
    ],
)
@pytest.mark.parametrize("frames", [63, 64, 65, 66, 70])  # odd in all layers, or even in some
def test_stack_is_convolutions_and_gelus(layers, frames, bias):
    convs = convolutions(layers, 6, bias)
    x = torch.randn(3, frames, 6, dtype=torch.float64, requires_grad=True)
    outputs = [run(convs, x) for run in (ours, plain)]
    torch.testing.assert_close(*outputs)
    tensors = [x, *(p for conv in convs for p in conv.parameters())]
    grad = torch.randn_like(outputs[0])
    for a, b in zip(*(torch.autograd.grad(y, tensors, grad) for y in outputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("layer", "frames", "rows"),
    [
        ((8, 3, 2), 63, 1),
        ((8, 3, 2), 3, 1),
        ((8, 3, 2), 64, 0),
        ((8, 3, 2), 1, 0),
        ((8, 2, 2), 63, 0),
        ((8, 3, 1), 63, 0),
        ((8, 5, 2), 63, 0),
    ],
)
def test_which_convolutions_want_a_row_before_the_frames(layer, frames, rows):
    x = torch.empty(0)
    assert rows_before(convolutions([layer], 6), frames, x) == rows
    assert rows_before(convolutions([layer], 6, bias=True), frames, x) == 0
    assert rows_before([], frames, x) == 0


def test_crops_of_the_paper_take_this_path_in_all_layers():
    for seconds in (5, 30):
        frames = (16000 * seconds - 10) // 5 + 1
        for _ in range(4):
            assert rows_before(convolutions([(8, 3, 2)], 8), frames, torch.empty(0)) == 1
            frames = (frames - 3) // 2 + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("samples", [9600, 9605])  # odd in all layers; even after the first
def test_extractor_in_half_precision_on_a_gpu(samples):
    """All of it, whose kernels and products are for these types, against the plain path in fp32."""
    layers = [(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32, 2, 2)] * 2
    extractor = ConvExtractor(layers, "default", False).cuda()
    waveform = torch.randn(3, samples, device="cuda")
    frames = (samples - 10) // 5 + 1
    results: list[list[Tensor]] = []
    for compile in (False, True):
        execution = Execution("on", compiled=True) if compile else PLAIN
        extractor.zero_grad()
        with (
            torch.backends.cudnn.flags(allow_tf32=False),
            torch.autocast("cuda", torch.float16, enabled=compile),
        ):
            y = extractor(waveform, execution)
            lead = rows_before([extractor.conv_layers[1].conv], frames, waveform)
        assert lead == (frames % 2 if compile else 0)
        torch.manual_seed(0)
        y.backward(torch.randn(y.shape, device="cuda").to(y.dtype))
        results.append([y.detach(), *(p.grad for p in extractor.parameters())])
    for exact, half in zip(*results, strict=True):
        assert (half - exact).norm() <= 1e-2 * exact.norm()
