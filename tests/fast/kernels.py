"""Our Triton kernels against plain operations: run by tests/fast/test_kernels.py, with
TRITON_INTERPRET=1 on a CPU (in fp32), and as they are on a GPU (in fp16, whose rounding is finer
than bf16's)."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.runtime import interpreter

from music_ssl_fairseq.fast import conv_stack, cuda_graphs, dispatch
from music_ssl_fairseq.fast.cuda_graphs import GraphedLayers
from music_ssl_fairseq.fast.device import is_hopper
from music_ssl_fairseq.fast.dispatch import Execution
from music_ssl_fairseq.fast.first_conv import fused_first_conv
from music_ssl_fairseq.fast.frame_selection import FrameSelection, select
from music_ssl_fairseq.fast.hashed_dropout import GOLDEN, drop_threshold, hashed_dropout, scramble
from music_ssl_fairseq.fast.kernels import attention as attention_kernels
from music_ssl_fairseq.fast.kernels import first_conv as first_conv_kernels
from music_ssl_fairseq.fast.kernels import gelu as gelu_kernels
from music_ssl_fairseq.fast.kernels import launch
from music_ssl_fairseq.fast.kernels import norm as norm_kernels
from music_ssl_fairseq.fast.kernels import sum as sum_kernels
from music_ssl_fairseq.fast.transformer_layer import (
    CastWeights,
    compile_layers_ahead,
    fused_layer,
)
from music_ssl_fairseq.modules.encoder_config import AudioEncoderConfig
from music_ssl_fairseq.modules.transformer import TransformerEncoder, TransformerLayer
from music_ssl_fairseq.modules.views import packing_of

GPU = torch.cuda.is_available()
HOPPER = not GPU or is_hopper(torch.device("cuda"))  # the interpreter runs all
DEVICE = "cuda" if GPU else "cpu"
DTYPE = torch.float16 if GPU else torch.float32


def _with_bool_mask(call: Callable, place: int) -> Callable:
    """Triton 3.9's interpreter makes int64 of `scalar & block`, and refuses it as a mask."""

    def called(self: Any, *arguments: Any, **options: Any) -> Any:
        mask = arguments[place]
        if isinstance(mask, interpreter.TensorHandle) and mask.data.dtype != bool:
            mask.data = mask.data.astype(bool)
        return call(self, *arguments, **options)

    return called


for _name, _place in (("create_masked_load", 1), ("create_masked_store", 2)):
    _call = getattr(interpreter.InterpreterBuilder, _name)
    setattr(interpreter.InterpreterBuilder, _name, _with_bool_mask(_call, _place))
ROUNDING = 2e-3 if GPU else 3e-6  # that of fp16; that of our kernels' GELU


def interpret_for_good() -> None:
    """Replace the language's functions by interpreted ones once, and not in each call of each.

    The interpreter spends most of its time on that. A third of the rest are comparisons for
    overflow, whose results it drops outside debugging.
    """
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    patch, patched = interpreter._patch_lang, set()

    def patch_once(function: Callable) -> SimpleNamespace:
        seen = function.__globals__.values()
        modules = tuple(module for module in (tl, tl.core) if any(v is module for v in seen))
        if modules not in patched:
            patched.add(modules)
            patch(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_once


if not GPU:
    interpret_for_good()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(DTYPE)


def close(ours: Tensor, plain: Tensor) -> None:
    error = (ours.float() - plain.float()).norm() / plain.float().norm()
    assert error < ROUNDING, error


@pytest.fixture(autouse=True)
def seed() -> Tensor:
    torch.manual_seed(0)
    return torch.tensor(12345, dtype=torch.int32, device=DEVICE)


def selection_of(crops: int, frames: int, counts: list[int]) -> tuple[Tensor, FrameSelection]:
    """So many frames of each crop, as indices and as kernels take them."""
    drawn = [torch.randperm(frames)[:count] + i * frames for i, count in enumerate(counts)]
    indices = torch.cat(drawn).sort().values.to(DEVICE)
    return indices, select(indices, crops, frames)


@pytest.mark.parametrize(
    ("frames", "heads", "width", "p", "counts"),
    [
        (249, 1, 64, 0.1, None),
        (100, 2, 32, 0.0, None),
        (129, 1, 16, 0.3, None),
        (249, 1, 64, 0.1, [140, 249]),
        (130, 2, 32, 0.0, [3, 64]),
        (129, 1, 16, 0.3, [0, 65]),
    ],
)
def test_attention(frames, heads, width, p, counts, seed):
    qkv = random(2, frames, 3 * heads * width)
    x = qkv.float().requires_grad_()
    q, k, v = x.view(2, frames, 3, heads, width).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(width)).softmax(-1)
    if p > 0:
        rows = torch.arange(2 * heads * frames, dtype=torch.int32, device=DEVICE)
        hashes = scramble(rows, seed).unsqueeze(-1) ^ scramble(~rows[:frames], seed)
        keep = (hashes * GOLDEN >= drop_threshold(p)).view(weights.shape)
        weights = torch.where(keep, weights / (1 - p), 0)
    plain = (weights @ v).transpose(1, 2).reshape(2, frames, -1)
    selection = None
    if counts is not None:
        indices, selection = selection_of(2, frames, counts)
        plain = plain.flatten(0, 1)[indices]
    grad = random(*plain.shape)
    plain.backward(grad.float())
    ours, logs = attention_kernels.forward(qkv, heads, p, seed, selection)
    d_bias = torch.empty(attention_kernels.parts(2, frames), qkv.size(2), device=DEVICE)
    d_qkv = attention_kernels.backward(qkv, ours, grad, logs, heads, p, seed, d_bias, selection)
    close(ours, plain)
    close(d_qkv, x.grad)
    close(d_bias.sum(0), x.grad.sum((0, 1)))


@pytest.mark.parametrize("among", [None, 70])
@pytest.mark.parametrize(("rows", "dim", "p"), [(9, 768, 0.1), (5, 48, 0.0), (60, 40, 0.3)])
def test_dropout_residual_norm(rows, dim, p, among, seed, monkeypatch):
    monkeypatch.setattr(norm_kernels, "_PROGRAMS", 2)  # so that some have several rows
    branch, grad, residual = random(rows, dim), random(rows, dim), random(among or rows, dim)
    selection = None if among is None else torch.randperm(among, device=DEVICE)[:rows]
    weight, bias = torch.rand(dim, device=DEVICE) + 0.5, torch.randn(dim, device=DEVICE)
    inputs = [t.float().clone().requires_grad_() for t in (branch, residual, weight, bias)]
    dropped = hashed_dropout(inputs[0], p, seed)
    added = inputs[1] if selection is None else inputs[1][selection]
    plain = F.layer_norm(added + dropped, (dim,), *inputs[2:], 1e-5)
    plain.backward(grad.float())
    if selection is not None:
        selection = selection.to(torch.int32)
    sums, ours = norm_kernels.forward(branch, residual, weight, bias, 1e-5, p, seed, selection)
    d_sums = torch.empty(norm_kernels.parts(rows), 3 * dim, device=DEVICE)
    d_residual, d_branch = norm_kernels.backward(
        grad / 2, grad / 2, sums, weight, 1e-5, p, seed, d_sums, selection, among
    )
    expected = [t.grad for t in inputs]
    close(ours, plain)
    close(d_branch, expected[0])
    close(d_residual, expected[1])
    close(d_sums.sum(0).view(3, dim), torch.stack([*expected[2:], expected[0].sum(0)]))


@pytest.mark.parametrize(
    ("frames", "skip", "lead"),
    [(37, 0, 0), (36, 0, 0), (36, 1, 1), (35, 1, 1), (36, 0, 1), (34, 1, 0), (30, 3, 2)],
)
@pytest.mark.parametrize("dim", [96, 7])
def test_gelu_of_some_frames(frames, skip, lead, dim):
    x, grad = 3 * random(2, 37, dim), random(2, lead + frames, dim)
    reference = x.float().requires_grad_()
    plain = F.pad(F.gelu(reference[:, skip : skip + frames]), (0, 0, lead, 0))
    plain.backward(grad.float())
    y = gelu_kernels.forward(x, frames, skip, lead)
    d_x = gelu_kernels.backward(x, grad, skip, lead)
    close(y, plain)
    close(d_x, reference.grad)
    unread = torch.cat([y[:, :lead], d_x[:, :skip], d_x[:, skip + frames :]], 1)
    assert (unread == 0).all()


def test_gelu_of_all_numbers():
    """That matter; those far from them; and what is not a number."""
    x = torch.linspace(-12, 12, 40001, device=DEVICE)
    x = torch.cat([x, torch.tensor([-1e30, 1e30], device=DEVICE)]).view(1, -1, 1)
    reference = x.double().requires_grad_()
    plain = F.gelu(reference)
    (slope,) = torch.autograd.grad(plain.sum(), reference)
    ours = gelu_kernels.forward(x, x.size(1))
    own_slope = gelu_kernels.backward(x, torch.ones_like(x))
    assert ((ours - plain).abs() <= 1e-6 + 1e-6 * plain.abs()).all()
    assert ((own_slope - slope).abs() <= 2.6e-6).all()
    nan = torch.full((1, 1, 1), float("nan"), device=DEVICE)
    assert gelu_kernels.forward(nan, 1).isnan().all()


@pytest.mark.parametrize(("rows", "dim"), [(7, 3072), (70, 48)])
def test_gelu_after_a_bias(rows, dim, monkeypatch):
    monkeypatch.setattr(gelu_kernels, "_PROGRAMS", 2)
    x, grad = 3 * random(rows, dim), random(rows, dim)
    reference = x.float().requires_grad_()
    F.gelu(reference).backward(grad.float())
    d_bias = torch.empty(gelu_kernels.parts(rows), dim, device=DEVICE)
    d_x = gelu_kernels.backward_summed(x, grad, d_bias)
    close(d_x, reference.grad)
    close(d_bias.sum(0), reference.grad.sum(0))


@pytest.fixture
def conv_kernels(monkeypatch):
    """With several tiles for each program, and used in the interpreter too."""
    if not HOPPER:
        pytest.skip("for Hopper GPUs and recent versions of Triton")
    from music_ssl_fairseq.fast.kernels import conv as conv_kernels

    monkeypatch.setattr(conv_kernels, "multiprocessors", lambda device: 2)
    if not GPU:
        monkeypatch.setattr(conv_stack, "can_use_kernel", lambda z, weight: True)
        monkeypatch.setattr(conv_kernels, "_TILE", conv_kernels._TILE | {"M": 32, "N": 32, "K": 16})
    return conv_kernels


@pytest.mark.parametrize("with_gelu", [False, True])
@pytest.mark.parametrize(("batch", "rows", "inputs", "outputs"), [(3, 37, 32, 64), (1, 5, 64, 32)])
def test_input_gradient_of_a_convolution(batch, rows, inputs, outputs, with_gelu, conv_kernels):
    if GPU:
        rows, inputs, outputs = 10 * rows, 8 * inputs, 8 * outputs
    z, grad = 2 * random(batch, 2 * rows, inputs), random(batch, rows, outputs)
    grad[:, 0] = 0
    weight = random(outputs, inputs, 3)
    reference = z.float().requires_grad_()
    x = F.gelu(reference) if with_gelu else 1 * reference
    F.conv1d(x.transpose(1, 2), weight.float(), None, 2, 1).backward(grad.float().transpose(1, 2))
    ours = conv_kernels.input_gradient(grad, weight, z if with_gelu else None)
    close(ours, reference.grad)
    assert not ours[:, 0].any()


@pytest.mark.parametrize("frames", [63, 67])  # all of them read by all layers, or not
def test_convolutions_with_the_gelu_before_them(frames, conv_kernels):
    dim = 128 if GPU else 32
    convs = [torch.nn.Conv1d(dim, dim, 3, 2, bias=False).to(DEVICE) for _ in range(3)]
    for conv in convs:
        torch.nn.init.normal_(conv.weight, std=0.1 if GPU else 0.2)
        with torch.no_grad():
            conv.weight.copy_(conv.weight.to(DTYPE))
    x = random(3, frames, dim)
    y = reference = x.float().requires_grad_()
    with torch.backends.cudnn.flags(allow_tf32=False):
        for conv in convs:
            y = F.gelu(conv(y.transpose(1, 2)).transpose(1, 2))
        grad = random(*y.shape)
        expected = torch.autograd.grad(y, [reference, *(c.weight for c in convs)], grad.float())
    leaf = x.requires_grad_()
    with torch.autocast("cuda", torch.float16, enabled=GPU):
        ours = conv_stack.run_conv_stack(convs, F.pad(leaf, (0, 0, 1, 0)), 1)
    gradients = torch.autograd.grad(ours, [leaf, *(c.weight for c in convs)], grad)
    for half, exact in zip([ours, *gradients], [y, *expected], strict=True):
        error = (half.float() - exact).norm() / exact.norm()
        assert error < 5 * ROUNDING, error


@pytest.fixture
def linear_gelu_kernels():
    if not HOPPER:
        pytest.skip("for Hopper GPUs and recent versions of Triton")
    from music_ssl_fairseq.fast.kernels import linear_gelu as linear_gelu_kernels

    return linear_gelu_kernels


@pytest.mark.parametrize(("rows", "depth", "width"), [(300, 72, 264), (128, 64, 128), (5, 200, 40)])
def test_products_with_gelu(rows, depth, width, linear_gelu_kernels, monkeypatch):
    monkeypatch.setattr(linear_gelu_kernels, "multiprocessors", lambda _: 1)  # several tiles each
    x, w, bias = random(rows, depth), random(width, depth) / depth**0.5, random(width)
    grad, w_2 = random(rows, depth), random(depth, width) / depth**0.5
    inner = F.linear(x.float(), w.float(), bias.float()).requires_grad_()
    plain = F.gelu(inner)
    (slope,) = torch.autograd.grad(plain.sum(), inner, retain_graph=True)
    plain.backward(grad.float() @ w_2.float())
    active, kept = linear_gelu_kernels.forward(x, w, bias)
    d_bias = torch.empty(linear_gelu_kernels.parts(rows), width, device=DEVICE)
    d_inner = linear_gelu_kernels.backward(grad, w_2, kept, d_bias)
    close(active, plain)
    close(kept, slope)
    alone, nothing = linear_gelu_kernels.forward(x, w, bias, False)
    assert torch.equal(alone, active)
    assert nothing is None
    close(d_inner, inner.grad)
    close(d_bias.sum(0), inner.grad.sum(0))


def test_sums_of_rows():
    shapes = [(3, 96), (130, 40), (64, 33), (1, 7)]
    whole, matrices = sum_kernels.allocate(shapes, torch.empty(0, device=DEVICE))
    whole.normal_()
    for matrix, found in zip(matrices, sum_kernels.sum_rows(whole, shapes), strict=True):
        torch.testing.assert_close(found, matrix.sum(0), rtol=1e-5, atol=1e-5)


def test_moments_of_windows():
    waveform = torch.randn(2, 2503, device=DEVICE)
    frames = (2503 - 10) // 5 + 1
    mean, moments = first_conv_kernels.moments(waveform, 10, 5, frames)
    windows = waveform.double().unfold(-1, 10, 5)
    torch.testing.assert_close(mean, windows.mean(1))
    torch.testing.assert_close(moments, windows.transpose(1, 2) @ windows / frames)


@pytest.mark.skipif(GPU, reason="test_fast_path.py compares whole steps on a GPU")
@pytest.mark.parametrize(("group", "lead"), [(True, 0), (False, 1)])
def test_first_layer(group, lead):
    x = torch.randn(3, 333)
    w = torch.randn(32, 1, 10).mul(0.3).requires_grad_()
    g, b = torch.randn(2, 32).requires_grad_().unbind()
    ours = fused_first_conv(x, w, (g, b, 1e-5), group, 5, lead=lead)
    z = F.conv1d(x.unsqueeze(1), w, stride=5)
    if group:
        plain = F.group_norm(z, 32, g, b).transpose(1, 2)
    else:
        plain = F.layer_norm(z.transpose(1, 2), (32,), g, b)
    plain = F.pad(F.gelu(plain), (0, 0, lead, 0))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(plain)
    gradients = [torch.autograd.grad(y, (w, g, b), grad) for y in (ours, plain)]
    for a, c in zip(*gradients, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_layer(training):
    """A whole layer, with the same masks in its residuals (and no dropout in its attention)."""
    compare_layers(training)


@pytest.mark.parametrize("fused", [True, False] if GPU else [True])
def test_layer_with_products(fused, linear_gelu_kernels, monkeypatch):
    """On a Hopper GPU without them too: elsewhere that is the layer of all other tests."""
    name = "music_ssl_fairseq.fast.transformer_layer._can_fuse_linear_gelu"
    monkeypatch.setattr(name, lambda *_: fused)
    compare_layers(True)


def compare_layers(training: bool) -> None:
    layer = _layers(1)[0].train(training)
    seeds = torch.tensor([3, 14, 15], dtype=torch.int32, device=DEVICE) if training else None
    x, grad = random(2, 11, 32), random(2, 11, 32)

    def fused(y: Tensor) -> tuple[Tensor, Tensor | None]:
        return fused_layer(layer, y, seeds, CastWeights([layer], y).of_layers[0])

    results = []
    for run in (lambda y: dispatch._run_layer(layer, y, None, seeds), fused):
        layer.zero_grad()
        y = x.clone().requires_grad_()
        with torch.autocast("cuda", torch.float16, enabled=GPU):
            output, _ = run(y)
            with torch.no_grad():
                _, feed_forward = run(y)
        output.backward(grad.to(output.dtype))
        results.append([output, feed_forward, y.grad, *(p.grad for p in layer.parameters())])
    for plain, ours in zip(*results, strict=True):
        scale = max(plain.float().norm().item(), 1e-2 * grad.float().norm().item())
        assert (ours.float() - plain.float()).norm() < (20 if GPU else 5) * ROUNDING * scale


def test_layer_of_selected_frames(monkeypatch):
    """As the layer of all frames, of which they are taken; with dropout of attention weights.

    The frames of a crop are one block of queries and the beginning of another.
    """
    (layer,) = _layers(1)
    layer.dropout.p, layer.self_attn.dropout = 0.0, 0.2
    frames, counts = 70, [40, 0, 66]
    if not GPU:  # where each row of a norm takes ten milliseconds
        frames, counts = 18, [9, 0, 17]
        monkeypatch.setattr(attention_kernels, "_ROWS", 16)
        monkeypatch.setitem(attention_kernels._FORWARD, "KEYS", 16)
        monkeypatch.setitem(attention_kernels._BACKWARD, "OTHERS", 16)
    indices, selection = selection_of(3, frames, counts)
    x, grad, seeds = random(3, frames, 32), random(len(indices), 32), _seeds(1)[0]
    results = []
    for some in (False, True):
        layer.zero_grad()
        y = x.clone().requires_grad_()
        with torch.autocast("cuda", torch.float16, enabled=GPU):
            weights = CastWeights([layer], y).of_layers[0]
            outputs = [*fused_layer(layer, y, seeds, weights, selection if some else None)]
            with torch.no_grad():
                outputs += fused_layer(layer, y, seeds, weights, selection if some else None)
        outputs.pop(1)
        if not some:
            outputs = [t.flatten(0, 1)[indices] for t in outputs]
        outputs[0].backward(grad)
        results.append([*outputs, y.grad, *(p.grad for p in layer.parameters())])
    for whole, part in zip(*results, strict=True):
        scale = max(whole.float().norm().item(), 1e-2 * grad.float().norm().item())
        assert (part.float() - whole.float()).norm() < 5 * ROUNDING * scale


@pytest.mark.parametrize("training", [True, False])
def test_layers_compile_ahead_what_they_launch(training, monkeypatch):
    """For all frames and for selected ones; without gradients, less."""
    layers = [layer.train(training) for layer in _layers(2)]
    _, selection = selection_of(2, 5, [3, 1])
    ahead, launched = set(), set()

    def note(self, grid, *args, **options):
        launched.add(self._key(args, options))
        launch_now(self, grid, *args, **options)

    launch_now = launch.Kernel._launch
    monkeypatch.setattr(launch.Kernel, "_launch", note)
    monkeypatch.setattr(
        launch.Kernel, "_compile", lambda self, _, *a, **o: ahead.add(self._key(a, o))
    )
    y = random(2, 5, 32).requires_grad_(training)
    seeds = _seeds(1)[0] if training else None
    with torch.autocast("cuda", torch.float16, enabled=GPU), torch.set_grad_enabled(training):
        compile_layers_ahead(layers, y, training, selection)
        assert not launched
        for layer, some in zip(layers, (None, selection), strict=True):
            weights = CastWeights([layer], y).of_layers[0]
            y, _ = fused_layer(layer, y, seeds, weights, some)
    if training:
        y.sum().backward()
    assert len(launched) >= (12 if training else 5), len(launched)
    assert launched == ahead


class _Again:
    """Stands in for a CUDA graph on a CPU: computes again, into the same memory."""

    def __init__(self, device: torch.device):
        pass

    def __enter__(self) -> "_Again":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Any]:
        result = function()

        def replay() -> None:
            with torch.no_grad():
                for place, value in zip(_tensors(result), _tensors(function()), strict=True):
                    place.copy_(value)

        return SimpleNamespace(replay=replay), result


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in _tensors(part)]


@pytest.fixture
def graphs(monkeypatch):
    if not GPU:
        monkeypatch.setattr(cuda_graphs, "_Capture", _Again)


def _config(**fields: Any) -> AudioEncoderConfig:
    sizes = {"encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 2}
    return AudioEncoderConfig(**sizes, attention_dropout=0.0, **fields)


def _layers(number: int) -> list[TransformerLayer]:
    layers = [TransformerLayer(_config(dropout=0.2)).to(DEVICE) for _ in range(number)]
    for layer in layers:
        for p in layer.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return layers


FRAMES, LAYERS, BATCHES = (11, 3, 3) if GPU else (4, 2, 2)
SAME, OTHER = (3, 3, 3), (3, 2, 3)  # selection frames of three batches; the first is captured
RECORDED = list(itertools.product([None, 1, 2], [None, SAME, OTHER]))
if not GPU:  # a second each: the first layer and the last, every count
    RECORDED = [(None, None), (0, SAME), (1, OTHER)]


@pytest.mark.parametrize(("left_out", "counts"), RECORDED)
def test_graphed_layers(left_out, counts, graphs):
    """As fused layers: with LayerDrop, several batches per update, and weights that changed."""
    layers, x = _layers(LAYERS), random(1, FRAMES, 32)
    selections = [
        None if counts is None else selection_of(1, FRAMES, [n])
        for n in (counts or (0, 0, 0))[:BATCHES]
    ]
    everything = list(range(LAYERS))
    some = [i for i in everything if i != left_out]
    with torch.autocast("cuda", torch.float16, enabled=GPU):
        captured = GraphedLayers(layers, x, selections[0] and selections[0][1])
    parameters = [p for layer in layers for p in layer.parameters()]
    with torch.no_grad():
        for p in parameters:
            p.mul_(0.9)
    batches = [
        (random(1, FRAMES, 32), random(1, FRAMES, 32), _seeds(LAYERS), used, selected)
        for used, selected in zip((some, everything, some)[:BATCHES], selections, strict=True)
    ]
    results: list[list[Tensor]] = []
    for run in (_fused, _play):
        for p in parameters:
            p.grad = None
        results.append([])
        for x, grad, seeds, used, selected in batches:
            y = x.clone().requires_grad_()
            with torch.autocast("cuda", torch.float16, enabled=GPU):
                output = run(layers, used, y, seeds, captured, selected and selected[1])
            if selected is not None:
                grad = grad.flatten(0, 1)[selected[0]]
                output = output.flatten(0, 1)[selected[0]] if output.dim() == 3 else output
            output.backward(grad)
            results[-1] += [output.clone(), y.grad.clone()]
        results[-1] += [p.grad.clone() for p in parameters]
    for fused, own in zip(*results, strict=True):
        assert torch.equal(fused, own)


def _seeds(number: int) -> Tensor:
    return torch.randint(99, (number, 3), dtype=torch.int32, device=DEVICE)


def _fused(
    layers: list,
    used: list[int],
    x: Tensor,
    seeds: Tensor,
    _: Any,
    selection: FrameSelection | None,
) -> Tensor:
    weights = CastWeights(layers, x).of_layers
    for i in used:
        x, _ = fused_layer(
            layers[i], x, seeds[i], weights[i], selection if i == LAYERS - 1 else None
        )
    return x


def _play(
    _: Any, used: list[int], x: Tensor, seeds: Tensor, captured: GraphedLayers,
    selection: FrameSelection | None,
) -> Tensor:  # fmt: skip
    captured.begin(seeds, selection)
    for i in used:
        x = captured(i, x)
    return x


def test_graphed_layers_say_when_two_passes_mix(graphs):
    layers, x = _layers(1), random(1, FRAMES, 32).requires_grad_()
    with torch.autocast("cuda", torch.float16, enabled=GPU):
        captured = GraphedLayers(layers, x)
    first, _ = (_play(None, [0], x, _seeds(1), captured, None) for _ in range(2))
    with pytest.raises(RuntimeError, match="before the backward pass"):
        first.sum().backward()


def _encoder_of(layers: int, monkeypatch) -> TransformerEncoder:
    """Return an encoder whose fast path is the one of GPUs, also on a CPU."""
    if not GPU:
        monkeypatch.setattr(dispatch, "can_fuse_layer", lambda *_: True)
        monkeypatch.setattr(dispatch, "compiled", lambda function, _: function)
    cfg = _config(encoder_layers=layers, dropout=0.0, conv_pos=9, conv_pos_groups=4)
    encoder = TransformerEncoder(cfg).to(DEVICE)
    for name, p in encoder.layers.named_parameters():
        if "layer_norm" in name:
            torch.nn.init.normal_(p, std=0.2)
    return encoder


def _check_encoder(encoder: TransformerEncoder, x, grad, *args, **options) -> None:
    """Compare outputs and gradients of the fast path with those of the plain one."""
    results = []
    for fast in (False, True):
        encoder.zero_grad()
        y = x.clone().requires_grad_()
        with torch.autocast("cuda", torch.float16, enabled=GPU):
            output, _, _ = encoder(y, None, Execution("auto", fast), *args, **options)
        output.backward(grad.to(output.dtype))
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        results.append([output, y.grad, *gradients])
    for plain, ours in zip(*results, strict=True):
        scale = max(plain.float().norm().item(), 1e-2 * grad.float().norm().item())
        assert (ours.float() - plain.float()).norm() < 20 * ROUNDING * scale


def test_encoder_of_packed_frames(monkeypatch):
    """On a GPU as graphs."""
    if not GPU:
        monkeypatch.setattr(dispatch, "graphed_layers", lambda *_: None)
    encoder = _encoder_of(1, monkeypatch)
    frames, number = (249, 108) if GPU else (11, 6)
    visible = torch.stack([torch.randperm(frames, device=DEVICE) < number for _ in range(2)])
    x, grad = random(2, frames, 32), random(2, number, 32)
    _check_encoder(encoder, x, grad, packing=packing_of(visible, number))


@pytest.mark.parametrize("layerdrop", [0.0, 1.0])
def test_encoder_of_masked_frames(layerdrop, graphs, monkeypatch):
    """Of as many masked frames as captured, and of others."""
    encoder = _encoder_of(2, monkeypatch)
    encoder.layerdrop = layerdrop
    frames = 70 if GPU else 6
    for count in (frames - 3, frames - 3, 5)[not GPU :]:
        masked_indices, _ = selection_of(2, frames, [count, 4])
        x, grad = random(2, frames, 32), random(len(masked_indices), 32)
        _check_encoder(encoder, x, grad, masked_indices)
