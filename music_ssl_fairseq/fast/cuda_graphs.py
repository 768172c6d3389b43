"""Transformer layers recorded as CUDA graphs: two calls from Python instead of thirty.

To start the kernels of a training step takes Python and torch some 45 ms, one kernel after the
other. A GPU that is done sooner waits, and where several train together each waits for the slowest
Python. A recorded layer is started at once, forward or backward. (The whole step cannot be: fairseq
runs it piece by piece, and LayerDrop leaves out other layers each time.)
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from music_ssl_fairseq.fast.device import working_dtype
from music_ssl_fairseq.fast.frame_selection import ChosenFrames
from music_ssl_fairseq.fast.transformer_layer import (
    CastWeights,
    backward_steps,
    forward_steps,
    fused_layer,
    kept_steps,
    layer_settings,
    linear_parameters,
    norm_parameters,
)

logger = logging.getLogger(__name__)

# Not an attribute of the encoder: a teacher is a copy of it, and has no use for one of this.
_recorded: "WeakKeyDictionary[nn.Module, RecordedLayers | None]" = WeakKeyDictionary()


def recorded_layers(
    encoder: nn.Module, x: Tensor, chosen: ChosenFrames | None = None
) -> "RecordedLayers | None":
    """The layers of an encoder for training on inputs like `x`, recorded at the first call.

    Args:
        encoder: with `layers` that `can_fuse_layer` takes.
        x: `[B, T, D]`, of the shape that all batches have from now on (`ShapeGate`).
        chosen: the frames that are wanted of the last layer, as many as in most batches; None for
            all.

    Returns:
        None if they cannot be recorded, for instance because memory is short.
    """
    layers = list(encoder.layers)  # type: ignore[arg-type]
    found = _recorded.get(encoder)
    if found is not None and found.key == _key(layers, x):
        return found
    if found is None and encoder in _recorded:
        return None
    _recorded[encoder] = None  # nothing of the old one is held while a new one is made
    del found
    try:
        _recorded[encoder] = RecordedLayers(layers, x, chosen)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        logger.warning("layers could not be recorded as CUDA graphs (%s): training without", reason)
    return _recorded[encoder]


def _key(layers: Sequence[Any], x: Tensor) -> tuple[Any, ...]:
    """What a recording holds for: kernels read norms where they lay, and know the dropout."""
    own = [(layer_settings(layer, True), *_addresses(norm_parameters(layer))) for layer in layers]
    return x.shape, working_dtype(x), x.device, *own


def _addresses(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(t.data_ptr() for t in tensors)


class _Layer(NamedTuple):
    """A recorded layer, and the memory that it reads and writes."""

    x: Tensor
    forward: Any
    output: Tensor
    grad: Tensor
    backward: Any
    d_x: Tensor
    gradients: list[Tensor]


class RecordedLayers:
    """Forward and backward passes of layers, recorded for inputs of one shape.

    They keep their activations in memory of their own, for one pass at a time: a forward pass must
    have had its backward pass, if it is to have one, before the next.

    Attributes:
        key: what this holds for.
    """

    def __init__(self, layers: Sequence[Any], x: Tensor, chosen: ChosenFrames | None = None):
        self.key = _key(layers, x)
        self._number = 0
        self._last = layers[-1]
        self._recorded_for = None if chosen is None else ChosenFrames(*(t.clone() for t in chosen))
        self._chosen = chosen
        self._parameters = [[*norm_parameters(m), *linear_parameters(m)] for m in layers]
        self._weights = CastWeights(layers, x)
        self._seeds = torch.zeros(len(layers), 3, dtype=torch.int32, device=x.device)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            self._layers, self._kept = _record_all(
                layers, x, self._weights, self._seeds, self._recorded_for
            )

    def begin(self, seeds: Tensor, chosen: ChosenFrames | None = None) -> None:
        """Begin a forward pass, with the weights as they are now.

        Args:
            seeds: `[layers, 3]` int32, of each layer's dropouts.
            chosen: the frames that are wanted of the last layer. If they are not as many as when it
                was recorded, it runs without the recording.
        """
        self._number += 1
        self._keep_gradients()
        self._weights.refresh()
        self._seeds.copy_(seeds)
        self._chosen = chosen
        if self._fits():
            for place, numbers in zip(self._recorded_for or (), chosen or (), strict=True):
                place.copy_(numbers)

    def _fits(self) -> bool:
        chosen, recorded = self._chosen, self._recorded_for
        if chosen is None or recorded is None:
            return chosen is recorded
        return chosen.rows.shape == recorded.rows.shape

    def _keep_gradients(self) -> None:
        """Copy what parameters still hold of the last pass, as when several batches make an update.

        Torch takes over as a parameter's gradient what it is given, and this pass writes there.
        """
        for layer, parameters in zip(self._layers, self._parameters, strict=True):
            for parameter, gradient in zip(parameters, layer.gradients, strict=True):
                held = parameter.grad
                if held is not None and held.data_ptr() == gradient.data_ptr():
                    parameter.grad = held.clone()

    def __call__(self, index: int, x: Tensor) -> Tensor:
        """The output of layer `index`, `[B, T, D]` or of the chosen frames `[N, D]`: valid until
        the next pass."""
        if index == len(self._layers) - 1 and not self._fits():
            weights = self._weights.of_layers[index]
            return fused_layer(self._last, x, self._seeds[index], weights, self._chosen)[0]
        return _Recorded.apply(x, self, index, *self._parameters[index])

    def forward(self, index: int, x: Tensor) -> Tensor:
        layer = self._layers[index]
        _put(x, layer.x)
        layer.forward.replay()
        return layer.output.detach()

    def backward(self, index: int, grad: Tensor, number: int) -> tuple[Tensor, list[Tensor]]:
        if number != self._number:
            raise RuntimeError(
                "a forward pass came before the backward pass of the one before, whose activations "
                "are gone; train with model.fast=off"
            )
        layer = self._layers[index]
        _put(grad, layer.grad)
        layer.backward.replay()
        return layer.d_x.detach(), [gradient.detach() for gradient in layer.gradients]


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, recorded: RecordedLayers, index: int, *parameters: Tensor
    ) -> Tensor:
        ctx.recorded, ctx.index, ctx.number = recorded, index, recorded._number
        return recorded.forward(index, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_x, gradients = ctx.recorded.backward(ctx.index, grad, ctx.number)
        return (d_x, None, None, *gradients)


def _put(x: Tensor, place: Tensor) -> None:
    """Nothing to do between neighbours: one's output is the other's input."""
    if x.data_ptr() != place.data_ptr():
        place.copy_(x)


def _record_all(
    layers: Sequence[Any],
    x: Tensor,
    weights: CastWeights,
    seeds: Tensor,
    chosen: ChosenFrames | None,
) -> tuple[list[_Layer], Any]:
    """The layers, and what lies between a forward pass and its backward pass."""
    settings = [layer_settings(layer, True) for layer in layers]
    norms = [norm_parameters(layer) for layer in layers]
    own = list(zip(seeds, settings, weights.of_layers, norms, strict=True))
    of_layer = [None] * (len(layers) - 1) + [chosen]
    weights.refresh()
    shape = x.shape
    inputs = [torch.zeros(shape, dtype=working_dtype(x), device=x.device)]
    forwards, kept = [], []
    with _Recorder(x.device) as record:
        # Once as they are: kernels are compiled and loaded, which a recording cannot hold.
        for i in {0, len(layers) - 1}:
            steps = forward_steps(inputs[0], *own[i], of_layer[i])
            all_kept = kept_steps(seeds[i], weights.of_layers[i], norms[i], steps)
            backward_steps(steps[-1], shape, settings[i], all_kept, of_layer[i])
            del steps, all_kept
        for i in range(len(layers)):
            graph, steps = record(partial(forward_steps, inputs[i], *own[i], of_layer[i]))
            forwards.append(graph)
            kept.append(kept_steps(seeds[i], weights.of_layers[i], norms[i], steps))
            inputs.append(steps[-1].view(shape) if of_layer[i] is None else steps[-1])
        grad = torch.zeros_like(inputs[-1])
        recorded = []
        for i in reversed(range(len(layers))):
            function = partial(backward_steps, grad, shape, settings[i], kept[i], of_layer[i])
            graph, (d_x, gradients) = record(function)
            both = (forwards[i], inputs[i + 1], grad, graph)
            recorded.append(_Layer(inputs[i], *both, d_x, gradients))
            grad = d_x
    return recorded[::-1], kept


class _Recorder:
    """Records what functions ask of a GPU, one after the other in one pool of memory.

    They are to be played in this order, though some may be left out: what one frees, later ones
    use.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __enter__(self) -> "_Recorder":
        self._stream.wait_stream(torch.cuda.current_stream())
        self._context = torch.cuda.stream(self._stream)
        self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)
        torch.cuda.current_stream().wait_stream(self._stream)

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Any]:
        """A graph to `replay`, and what the function returns: memory that replaying writes."""
        graph = torch.cuda.CUDAGraph()
        # Loaders' threads may use the GPU meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            result = function()
        finally:
            graph.capture_end()
        return graph, result
