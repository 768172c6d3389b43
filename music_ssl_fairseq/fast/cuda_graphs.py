"""Transformer layers, and a teacher's whole pass, captured as CUDA graphs.

Python and torch need some 45 ms to launch the kernels of a training step one by one. A GPU that
computes the step in less is idle for the rest. A captured layer is one launch, forward or backward,
instead of thirty. (A whole step cannot be captured: fairseq runs it piece by piece, and LayerDrop
leaves out other layers each time.)
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from music_ssl_fairseq.fast.device import working_dtype
from music_ssl_fairseq.fast.frame_selection import FrameSelection
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

# Not an attribute of the module, because a teacher is a copy of it and would copy the graphs.
_graphed: "WeakKeyDictionary[nn.Module, Any]" = WeakKeyDictionary()


def _cached(module: nn.Module, key: Any, capture: Callable[[], Any], what: str) -> Any:
    """Return a module's graphs: those captured with this key, or else new ones.

    Returns None if capturing fails, for instance because memory is short. Later calls do not try
    again.
    """
    found = _graphed.get(module)
    if found is not None and found.key == key:
        return found
    if found is None and module in _graphed:
        return None
    _graphed[module] = None  # frees the old graphs' memory before new ones are captured
    del found
    try:
        _graphed[module] = capture()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        logger.warning("%s could not be captured as CUDA graphs (%s): slower without", what, reason)
    return _graphed[module]


def graphed_layers(
    encoder: nn.Module, x: Tensor, selection: FrameSelection | None = None
) -> "GraphedLayers | None":
    """Return an encoder's layers for training on inputs like `x`, captured at the first call.

    Args:
        encoder: with `layers` that `can_fuse_layer` takes.
        x: `[B, T, D]`, of the shape that all batches have from now on (`ShapeGate`).
        selection: the frames needed of the last layer, as many as in most batches; None for all.

    Returns:
        None if the layers cannot be captured.
    """
    layers = list(encoder.layers)  # type: ignore[arg-type]
    capture = partial(GraphedLayers, layers, x, selection)
    return _cached(encoder, _key(layers, x), capture, "layers")


def _key(layers: Sequence[Any], x: Tensor) -> tuple[Any, ...]:
    """Return the conditions of valid graphs, such as the norms' addresses and the dropouts."""
    addresses = [[t.data_ptr() for t in norm_parameters(layer)] for layer in layers]
    settings = [layer_settings(layer, True) for layer in layers]
    return x.shape, working_dtype(x), x.device, settings, addresses


class _LayerGraphs(NamedTuple):
    """A captured layer, and the memory that it reads and writes."""

    x: Tensor
    forward: Any
    output: Tensor
    grad: Tensor
    backward: Any
    d_x: Tensor
    gradients: list[Tensor]


class GraphedLayers:
    """Forward and backward passes of layers, captured for inputs of one shape.

    Activations lie in the graphs' own memory, for one pass at a time: a backward pass must run
    before the next forward pass.

    Attributes:
        key: what the graphs are valid for.
    """

    def __init__(self, layers: Sequence[Any], x: Tensor, selection: FrameSelection | None = None):
        self.key = _key(layers, x)
        self._number = 0
        self._last = layers[-1]
        self._captured_for = (
            None if selection is None else FrameSelection(*(t.clone() for t in selection))
        )
        self._selection = selection
        self._parameters = [[*norm_parameters(m), *linear_parameters(m)] for m in layers]
        self._weights = CastWeights(layers, x)
        self._seeds = torch.zeros(len(layers), 3, dtype=torch.int32, device=x.device)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            self._layers, self._kept = _capture_layers(
                layers, x, self._weights, self._seeds, self._captured_for
            )

    def begin(self, seeds: Tensor, selection: FrameSelection | None = None) -> None:
        """Begin a forward pass with the current weights.

        Args:
            seeds: `[layers, 3]` int32, of each layer's dropouts.
            selection: the frames needed of the last layer. If their number is not that of the
                capture, the last layer runs without its graph.
        """
        self._number += 1
        self._keep_gradients()
        self._weights.refresh()
        self._seeds.copy_(seeds)
        self._selection = selection
        if self._fits():
            for place, numbers in zip(self._captured_for or (), selection or (), strict=True):
                place.copy_(numbers)

    def _fits(self) -> bool:
        """Return whether the last layer's graph can serve the present selection."""
        selection, captured = self._selection, self._captured_for
        if selection is None or captured is None:
            return selection is captured
        return selection.masked_indices.shape == captured.masked_indices.shape

    def _keep_gradients(self) -> None:
        """Copy gradients that parameters hold since the last pass (several batches per update).

        Torch uses the returned tensor as `grad`, and this pass writes to the same memory.
        """
        for layer, parameters in zip(self._layers, self._parameters, strict=True):
            for parameter, gradient in zip(parameters, layer.gradients, strict=True):
                held = parameter.grad
                if held is not None and held.data_ptr() == gradient.data_ptr():
                    parameter.grad = held.clone()

    def __call__(self, index: int, x: Tensor) -> Tensor:
        """Run a layer: `[B, T, D]`, or `[N, D]` for a selection, valid until the next pass."""
        if index == len(self._layers) - 1 and not self._fits():
            weights = self._weights.of_layers[index]
            return fused_layer(self._last, x, self._seeds[index], weights, self._selection)[0]
        return _GraphedLayer.apply(x, self, index, *self._parameters[index])

    def forward(self, index: int, x: Tensor) -> Tensor:
        layer = self._layers[index]
        _put(x, layer.x)
        layer.forward.replay()
        return layer.output.detach()

    def backward(self, index: int, grad: Tensor, number: int) -> tuple[Tensor, list[Tensor]]:
        if number != self._number:
            raise RuntimeError(
                "a second forward pass came before the backward pass of the first, whose "
                "activations it overwrote; train with model.fast=off"
            )
        layer = self._layers[index]
        _put(grad, layer.grad)
        layer.backward.replay()
        return layer.d_x.detach(), [gradient.detach() for gradient in layer.gradients]


class _GraphedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, captured: GraphedLayers, index: int, *parameters: Tensor
    ) -> Tensor:
        ctx.captured, ctx.index, ctx.number = captured, index, captured._number
        return captured.forward(index, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_x, gradients = ctx.captured.backward(ctx.index, grad, ctx.number)
        return (d_x, None, None, *gradients)


def _put(x: Tensor, place: Tensor) -> None:
    """Copy, except between neighbours, where one's output is the other's input."""
    if x.data_ptr() != place.data_ptr():
        place.copy_(x)


def _capture_layers(
    layers: Sequence[Any],
    x: Tensor,
    weights: CastWeights,
    seeds: Tensor,
    selection: FrameSelection | None,
) -> tuple[list[_LayerGraphs], Any]:
    """Capture all layers; return them and what their forward passes keep for the backward ones."""
    settings = [layer_settings(layer, True) for layer in layers]
    norms = [norm_parameters(layer) for layer in layers]
    arguments = list(zip(seeds, settings, weights.of_layers, norms, strict=True))
    selections = [None] * (len(layers) - 1) + [selection]  # the last layer's alone
    shape = x.shape
    inputs = [torch.zeros(shape, dtype=working_dtype(x), device=x.device)]
    forwards, kept = [], []
    with _Capture(x.device) as capture:
        # Run once uncaptured: compiling and loading kernels cannot be captured.
        for i in {0, len(layers) - 1}:
            steps = forward_steps(inputs[0], *arguments[i], selections[i])
            all_kept = kept_steps(seeds[i], weights.of_layers[i], norms[i], steps)
            backward_steps(steps[-1], shape, settings[i], all_kept, selections[i])
            del steps, all_kept
        for i in range(len(layers)):
            graph, steps = capture(partial(forward_steps, inputs[i], *arguments[i], selections[i]))
            forwards.append(graph)
            kept.append(kept_steps(seeds[i], weights.of_layers[i], norms[i], steps))
            inputs.append(steps[-1].view(shape) if selections[i] is None else steps[-1])
        grad = torch.zeros_like(inputs[-1])
        captured = []
        for i in reversed(range(len(layers))):
            function = partial(backward_steps, grad, shape, settings[i], kept[i], selections[i])
            backward, (d_x, gradients) = capture(function)
            both = (forwards[i], inputs[i + 1], grad, backward)
            captured.append(_LayerGraphs(inputs[i], *both, d_x, gradients))
            grad = d_x
    return captured[::-1], kept


def graphed_pass(
    owner: nn.Module, function: Callable[..., Tensor], inputs: Sequence[Tensor], key: Any
) -> "GraphedPass | None":
    """Return a function of `inputs` without gradients, captured in its first call.

    Args:
        owner: the module whose weights the function reads, and which keep their places.
        function: from tensors to a tensor, without dropout.
        inputs: of the shapes that all batches have from now on.
        key: what else the captured kernels are valid for.

    Returns:
        None if it cannot be captured.
    """
    shapes = [(x.shape, x.dtype) for x in inputs]
    key = (key, shapes, [p.data_ptr() for p in owner.parameters()])
    return _cached(owner, key, partial(GraphedPass, function, inputs, key), "the teacher")


class GraphedPass:
    """A function without gradients, captured for inputs of fixed shapes; valid for `key`."""

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], key: Any):
        self.key = key
        self._inputs = [x.clone() for x in inputs]
        with _Capture(inputs[0].device) as capture:
            function(*self._inputs)  # once uncaptured: compiling cannot be captured
            self._graph, self._output = capture(lambda: function(*self._inputs))

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the function's result, valid until the next call."""
        for x, place in zip(inputs, self._inputs, strict=True):
            _put(x, place)
        self._graph.replay()
        return self._output


class _Capture:
    """Captures the kernels of functions, one graph per function, in one pool of memory.

    Graphs must be replayed in this order, though some may be left out: later ones use the memory
    that earlier ones free.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __enter__(self) -> "_Capture":
        self._stream.wait_stream(torch.cuda.current_stream())
        self._context = torch.cuda.stream(self._stream)
        self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)
        torch.cuda.current_stream().wait_stream(self._stream)

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Any]:
        """Return a graph to `replay`, and the function's result: memory that replaying writes."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the data loader's, may use the GPU meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            result = function()
        finally:
            graph.capture_end()
        return graph, result
