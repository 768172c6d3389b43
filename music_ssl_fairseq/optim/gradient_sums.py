"""Gradients averaged over processes, most of them while the backward pass still runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from fairseq.distributed import LegacyDistributedDataParallel
from torch import Tensor, nn
from torch.distributed import ProcessGroup, Work


class GradientSums:
    """What fairseq's `legacy_ddp` does with gradients after the backward pass, begun within it.

    The backward pass ends with the convolutional extractor, which takes long and has a twentieth of
    the parameters. When the gradient of the extractor's features is there, so are those of all
    other parameters: they are sent, and summed while the GPU computes the rest.

    With the number of processes as divisor the sums are fairseq's, with zeros where a process has
    no gradient (LayerDrop): to the bit with two processes. With more, the order in which numbers
    are added up depends on where they lie in what is sent.

    Processes that do not send the same in the same order wait for each other for ever. fairseq
    exchanges counts between the last backward pass of an update and `finish`, so the order is: the
    other parameters, fairseq's counts, the extractor. It is kept whatever happens in a batch: the
    end of `batch` sends what has not been sent, and needs no memory that it may not get.
    A model without an extractor, or whose extractor is not trained, has one sum, in `finish`.

    Args:
        ddp: the wrapped model. Its extractor, if it has one, is `feature_extractor`.
        divisor: what gradients are divided by before they are summed.

    Attributes:
        to_average: what is left to multiply the sums by for averages.
    """

    def __init__(self, ddp: LegacyDistributedDataParallel, divisor: int):
        self._ddp = ddp
        self.to_average = divisor / ddp.world_size
        trained = _trained(ddp.module)
        self._extractor = getattr(ddp.module, "feature_extractor", None)
        last = [] if self._extractor is None else _trained(self._extractor)
        ids = {id(p) for p in last}
        first = [p for p in trained if id(p) not in ids]
        self._two = bool(first and last)
        parts = [first, last] if self._two else [trained]
        self._parts = [_Part(part, divisor, ddp.process_group) for part in parts]
        self._awaited = 0

    def begin(self) -> None:
        """Begin an update, or go on with it after an error.

        fairseq's `no_sync`, by which a batch knows that it is not the last of its update, stays in
        force if an error ends it. It is for one batch: between two it never holds.
        """
        self._ddp.accumulate_grads = False

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What the forward and the backward pass of a batch run in."""
        if self._ddp.accumulate_grads or not self._two:
            yield
            return
        self._awaited = 0
        hook = self._extractor.register_forward_hook(  # type: ignore[union-attr]
            # No method: a teacher may be copied from the model within a batch, and would copy all
            # this. Its own features have no gradients.
            lambda extractor, inputs, features: self._await_gradient(features)
        )
        try:
            yield
        except RuntimeError:
            # fairseq goes on where memory was short, without the gradients of this process.
            for p in self._parts[0].parameters:
                p.grad = None
            raise
        finally:
            hook.remove()
            self._parts[0].send()

    def _await_gradient(self, features: Tensor) -> None:
        if features.requires_grad:
            self._awaited += 1
            features.register_hook(self._gradient_came)

    def _gradient_came(self, gradient: Tensor) -> None:
        # Autograd goes through the forward pass backwards and adds to `grad` at once, so it is done
        # with all that came after the features; in several forward passes, after the first's.
        self._awaited -= 1
        if self._awaited == 0:
            self._parts[0].send()

    def finish(self) -> None:
        """Leave the sums in `grad`, where they stay until the next update has its own."""
        for part in self._parts:
            part.send()
        for part in self._parts:
            part.receive()


class _Part:
    """Parameters whose gradients are sent together, from memory that is kept for them.

    fairseq copies each gradient there and back. Here they are copied at once and then left there.
    """

    def __init__(self, parameters: Sequence[Tensor], divisor: int, group: ProcessGroup):
        self.parameters = parameters
        self._divisor = divisor
        self._group = group
        sizes = [p.numel() for p in parameters]
        self._flat = parameters[0].new_zeros(sum(sizes))
        parts = zip(self._flat.split(sizes), parameters, strict=True)
        self._places = [part.view_as(p) for part, p in parts]
        self._work: Work | None = None

    @torch.no_grad()
    def send(self) -> None:
        """Begin to sum, unless that has begun."""
        if self._work is not None:
            return
        places, gradients, missing = [], [], []
        for p, place in zip(self.parameters, self._places, strict=True):
            if p.grad is None:
                missing.append(place)
            else:
                places.append(place)
                gradients.append(p.grad)
        if gradients:
            torch._foreach_copy_(places, gradients)
        if missing:
            torch._foreach_zero_(missing)
        if self._divisor != 1:
            self._flat /= self._divisor
        self._work = torch.distributed.all_reduce(self._flat, group=self._group, async_op=True)

    def receive(self) -> None:
        """Wait for the sum (on a GPU nobody waits but the stream), and leave it in `grad`."""
        assert self._work is not None
        self._work.wait()
        self._work = None
        for p, place in zip(self.parameters, self._places, strict=True):
            p.grad = place


def _trained(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def can_sum(module: object) -> bool:
    """Whether this is a wrapped model whose gradients `GradientSums` can sum."""
    if not isinstance(module, LegacyDistributedDataParallel):
        return False
    parameters = _trained(module.module)
    shared = not any(hasattr(p, "expert") for p in parameters)
    return shared and len({(p.dtype, p.device) for p in parameters}) == 1
