"""The entry point of this package: an `Execution` runs the operations of a model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from music_ssl_fairseq.fast.block_conv import block_conv
from music_ssl_fairseq.fast.compilation import ShapeGate, can_compile, compiled
from music_ssl_fairseq.fast.conv_stack import conv_channels_last, rows_before, run_conv_stack
from music_ssl_fairseq.fast.cuda_graphs import graphed_layers, graphed_pass
from music_ssl_fairseq.fast.device import working_dtype
from music_ssl_fairseq.fast.first_conv import (
    can_fuse,
    fold_moments,
    folded_first_conv,
    fused_first_conv,
    window_moments,
)
from music_ssl_fairseq.fast.frame_selection import select
from music_ssl_fairseq.fast.gelu import gelu
from music_ssl_fairseq.fast.hashed_dropout import draw_seeds, hashed
from music_ssl_fairseq.fast.transformer_layer import (
    CastWeights,
    can_fuse_layer,
    compile_layers_ahead,
    fused_layer,
)
from music_ssl_fairseq.frames import frames_within

__all__ = [
    "PLAIN", "Execution", "can_compile", "fold_moments", "gelu", "window_moments", "working_dtype",
]  # fmt: skip

RunLayer = Callable[[Any, Tensor], tuple[Tensor, Tensor | None]]


class Execution:
    """Runs a model's operations one by one, or compiled, fused and as CUDA graphs.

    A model makes one from its settings; `for_batch` returns the one for a batch. Results are equal
    to rounding, except that dropout uses other random numbers when compiled.

    Args:
        setting: `model.fast`: layouts and algorithms for GPUs, auto (on GPUs), on or off.
        compiled: whether to use compiled functions, fused kernels and CUDA graphs, on a GPU.
        group_norm: filters and shifts of `fold_moments`: the extractor's first convolution with
            its group norm. Long tracks are encoded in windows, and this norm needs the statistics
            of the whole track. None: each waveform has its own statistics.
        ahead: compile the next batch's kernels in background threads.
    """

    def __init__(
        self,
        setting: str = "auto",
        compiled: bool = False,
        group_norm: tuple[Tensor, Tensor] | None = None,
        ahead: bool = False,
    ):
        # A plain string: a compiler does not see that an Enum of fairseq's equals its name.
        self.setting = str(setting)
        self.compiled = compiled
        self.group_norm = group_norm
        self._gate = ShapeGate()
        self.ahead = ahead

    def for_batch(
        self, waveform: Tensor, padding_mask: Tensor | None, training: bool
    ) -> "Execution":
        """Return the execution of a batch: compiled on a GPU, if its shape keeps coming."""
        if self.setting == "off" or not waveform.is_cuda or not can_compile():
            return self
        mode = (training, torch.is_grad_enabled(), padding_mask is None)
        ahead = self._gate.is_new(mode)
        return Execution(self.setting, self._gate(mode, tuple(waveform.shape)), None, ahead)

    def using(self, compiled: bool, group_norm: tuple[Tensor, Tensor] | None = None) -> "Execution":
        """Return an execution with the same setting."""
        return Execution(self.setting, compiled, group_norm)

    def is_fast(self, x: Tensor) -> bool:
        """Return whether to use layouts and algorithms for GPUs on a tensor like `x`."""
        return self.setting == "on" or (self.setting == "auto" and x.is_cuda)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return `function(*args)`, computed by a compiled function if this execution compiles."""
        return compiled(function, self.compiled)(*args)

    def replay(
        self, owner: nn.Module, function: Callable[..., Tensor], inputs: Tensor, key: Any
    ) -> Tensor:
        """Call a function without gradients or dropout; if compiled, as one CUDA graph.

        Args:
            owner: the module whose weights it reads.
            function: from a tensor to a tensor.
            inputs: its argument, of one shape as long as batches are compiled.
            key: what else its operations depend on.

        Returns:
            Its result, valid until the next call.
        """
        if not self.compiled:
            return function(inputs)
        graph = graphed_pass(owner, function, [inputs], key)
        return function(inputs) if graph is None else graph(inputs)

    def extract(self, layers: Sequence[Any], waveform: Tensor) -> Tensor:
        """Run the extractor: convolutions, each with its norm and a GELU.

        Args:
            layers: each with `conv`, `norm` (or None), and a `forward` that takes `[B, T, C]` and
                optionally a convolution to use.
            waveform: `[B, T]`.

        Returns:
            `[B, frames, channels]`.
        """
        if self.ahead:
            self._compile_extractor_ahead(layers, waveform)
        return self._extract(layers, waveform, self.compiled)

    def _compile_extractor_ahead(self, layers: Sequence[Any], waveform: Tensor) -> None:
        from music_ssl_fairseq.fast.kernels.launch import compile_ahead

        parameters = [p for layer in layers for p in layer.parameters() if p.requires_grad]
        with compile_ahead():
            x = self._extract(layers, waveform, True)
            if x.requires_grad:
                torch.autograd.grad(x, parameters, torch.zeros_like(x), allow_unused=True)

    def _extract(self, layers: Sequence[Any], waveform: Tensor, stack: bool) -> Tensor:
        fast = self.is_fast(waveform)
        first, others = layers[0], layers[1:]
        conv, norm, stride = first.conv, first.norm, first.conv.stride[0]
        convs = [layer.conv for layer in others]
        stacked = stack and all(layer.norm is None for layer in others)
        lead = 0
        if stacked:
            frames = frames_within(waveform.size(-1), conv.kernel_size[0], stride)
            lead = rows_before(convs, frames, waveform)
        if self.group_norm is not None:
            x = folded_first_conv(waveform, *self.group_norm, stride, lead)
        elif fast and norm is not None and can_fuse(waveform, conv.weight, conv.bias):
            parameters = (norm.weight, norm.bias, norm.eps)
            group = isinstance(norm, nn.GroupNorm)
            x = fused_first_conv(waveform, conv.weight, parameters, group, stride, lead)
        else:
            return self.run(_run_convs, layers, waveform.unsqueeze(-1), fast)
        if stacked:
            return run_conv_stack(convs, x, lead)
        return self.run(_run_convs, others, x, fast)

    def grouped_conv(self, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        """Convolve `[B, T, D]` over time, with as many frames in the output: see `block_conv`."""
        dtype = working_dtype(x)
        return block_conv(x.to(dtype), weight.to(dtype), bias.to(dtype), groups)

    def encoder_input(
        self, model: Any, inputs: list[Tensor], mask: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """Call `model.encoder_input(inputs, mask)`; if compiled, its dropout is hashed.

        Returns the encoder's input, and by name what else the model's loss needs of `inputs`.
        """
        return self.run(_encoder_input, model, inputs, mask, self._seed(model, mask))

    def decode(self, decoder: Any, x: Tensor, **inputs: Any) -> Tensor:
        """Call `decoder(x, execution=self, **inputs)`; if compiled, its dropout is hashed."""
        return self.run(_decode, decoder, x, {**inputs, "execution": self}, self._seed(decoder, x))

    def _seed(self, module: nn.Module, x: Tensor) -> Tensor | None:
        return draw_seeds(1, x.device)[0] if self.compiled and module.training else None

    def begin_layers(
        self,
        encoder: Any,
        x: Tensor,
        attend: Tensor | None,
        masked_indices: Tensor | None,
        packing: Any = None,
    ) -> tuple[Tensor, RunLayer]:
        """Begin a pass of a Transformer encoder.

        Args:
            encoder: has `embed(x, packing, execution, drop)` and `layers`, each called as
                `layer(x, attend, drop)`.
            x: `[B, T, D]`.
            attend: `[B, 1, 1, T]` bool, True where a key is real, or None for all (of K packed
                frames: `[B, 1, 1, K]`).
            masked_indices: `[N]` int64, ascending indices into `B * T`: of the last layer only
                these frames are needed. Fused layers leave out the others.
            packing: passed on to `embed`: the frames that it keeps, or None for all.

        Returns:
            The first layer's input, and a function that runs a layer: from the layer and its input
            to its output and its feed-forward output (None for fused layers with gradients).
        """
        if not self.compiled:
            x = encoder.embed(x, packing, self)
            if self.ahead:  # the next batch of this shape runs compiled
                _compile_ahead(encoder, x, attend, masked_indices)
            return x, lambda layer, x: layer(x, attend)
        seeds = None
        if encoder.training:  # a row per layer, and one for the input
            seeds = draw_seeds(3 * (len(encoder.layers) + 1), x.device).view(-1, 3)
        x = self.run(_embed, encoder, x, packing, self, None if seeds is None else seeds[-1])
        return x, _layer_runner(encoder, x, attend, seeds, masked_indices)


PLAIN = Execution("off")
"""Runs operations one by one, as in the papers."""


def _layer_runner(
    encoder: Any,
    x: Tensor,
    attend: Tensor | None,
    seeds: Tensor | None,
    masked_indices: Tensor | None,
) -> RunLayer:
    """Return the fastest way to run layers on `x`, with `[layers + 1, 3]` seeds in training."""
    layers = list(encoder.layers)
    numbers = {layer: i for i, layer in enumerate(layers)}
    own_seeds = [None] * len(layers) if seeds is None else seeds.unbind()
    if not can_fuse_layer(layers[0], x, attend):
        run = compiled(_run_layer, True)
        return lambda layer, x: run(layer, x, attend, own_seeds[numbers[layer]])
    selection = None if masked_indices is None else select(masked_indices, *x.shape[:2])
    if seeds is not None and torch.is_grad_enabled():
        graphs = graphed_layers(encoder, x, selection)
        if graphs is not None:
            graphs.begin(seeds[:-1], selection)
            return lambda layer, x: (graphs(numbers[layer], x), None)
    weights = CastWeights(layers, x).of_layers

    def run_fused(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
        number = numbers[layer]
        some = selection if layer is layers[-1] else None
        return fused_layer(layer, x, own_seeds[number], weights[number], some)

    return run_fused


def _compile_ahead(
    encoder: Any, x: Tensor, attend: Tensor | None, masked_indices: Tensor | None
) -> None:
    layers = list(encoder.layers)
    if can_fuse_layer(layers[0], x, attend):
        selection = None if masked_indices is None else select(masked_indices, *x.shape[:2])
        compile_layers_ahead(layers, x, encoder.training, selection)


def _run_convs(layers: Sequence[Any], x: Tensor, fast: bool) -> Tensor:
    for layer in layers:
        x = layer(x, conv_channels_last) if fast else layer(x)
    return x


def _encoder_input(model: Any, inputs: list[Tensor], mask: Tensor, seed: Tensor | None) -> Any:
    return model.encoder_input(inputs, mask, **_hashed_drop(seed))


def _decode(decoder: Any, x: Tensor, inputs: dict[str, Any], seed: Tensor | None) -> Tensor:
    return decoder(x, **inputs, **_hashed_drop(seed))


def _embed(
    encoder: Any, x: Tensor, packing: Any, execution: Execution, seeds: Tensor | None
) -> Tensor:
    seed = None if seeds is None else seeds[0]
    return encoder.embed(x, packing, execution, **_hashed_drop(seed))


def _hashed_drop(seed: Tensor | None) -> dict[str, Any]:
    """Return the argument for hashed dropout; none without a seed, as in evaluation."""
    return {} if seed is None else {"drop": hashed([seed])}


def _run_layer(
    layer: Any, x: Tensor, attend: Tensor | None, seeds: Tensor | None
) -> tuple[Tensor, Tensor]:
    if seeds is None:
        return layer(x, attend)
    _, *residuals = seeds.unbind()  # the first is that of the attention weights in `fused_layer`
    return layer(x, attend, hashed(residuals))
