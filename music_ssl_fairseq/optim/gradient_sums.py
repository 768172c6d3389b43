"""Gradients averaged over processes, most of them during the backward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from fairseq.distributed import LegacyDistributedDataParallel
from torch import Tensor, nn
from torch.distributed import ProcessGroup, Work


class GradientSums:
    """Sums gradients over processes like fairseq's `legacy_ddp`, beginning in the backward pass.

    The backward pass ends with the convolutional extractor, which takes long and has a twentieth of
    the parameters. Once the gradient of the extractor's features is computed, so are those of all
    other parameters: they are sent, and summed while the GPU computes the rest.

    With the number of processes as divisor the sums are fairseq's, with zeros where a process has
    no gradient (LayerDrop): to the bit with two processes. With more, the order of additions
    depends on the place of a number in what is sent.

    Processes must send the same tensors in the same order, or they block each other for ever.
    fairseq exchanges counts between an update's last backward pass and `finish`, so the order is:
    the other parameters, fairseq's counts, the extractor. An error in a batch does not change it:
    the end of `batch` sends what has not been sent, from memory already allocated. A model without
    an extractor, or with a frozen one, has one sum, in `finish`.

    Args:
        ddp: the wrapped model. Its extractor, if it has one, is `feature_extractor`.
        divisor: gradients are divided by it before they are summed.
    """

    def __init__(self, ddp: LegacyDistributedDataParallel, divisor: int):
        self._ddp = ddp
        self.to_average = divisor / ddp.world_size  # factor that turns the sums into averages
        trained = _trained(ddp.module)
        self._extractor = getattr(ddp.module, "feature_extractor", None)
        last = [] if self._extractor is None else _trained(self._extractor)
        ids = {id(p) for p in last}
        first = [p for p in trained if id(p) not in ids]
        self._two = bool(first and last)
        parts = [first, last] if self._two else [trained]
        self._parts = [_GradientPart(part, divisor, ddp.process_group) for part in parts]
        self._awaited = 0

    def begin(self) -> None:
        """Begin an update, or continue it after an error.

        fairseq's `no_sync` marks a batch that is not the last of its update. If an error ends the
        batch, the mark stays set, so it is reset here.
        """
        self._ddp.accumulate_grads = False

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Provide the context of a batch's forward and backward pass, in which sums begin."""
        if self._ddp.accumulate_grads or not self._two:
            yield
            return
        self._awaited = 0
        hook = self._extractor.register_forward_hook(  # type: ignore[union-attr]
            # A lambda, because a teacher that is copied from the model within a batch would copy a
            # bound method's object. The teacher's features have no gradients.
            lambda extractor, inputs, features: self._await_gradient(features)
        )
        try:
            yield
        except RuntimeError:
            # After running out of memory fairseq continues without this process's gradients.
            for p in self._parts[0].parameters:
                p.grad = None
            raise
        finally:
            hook.remove()
            self._parts[0].send()

    def _await_gradient(self, features: Tensor) -> None:
        if features.requires_grad:
            self._awaited += 1
            features.register_hook(self._send_after_last)

    def _send_after_last(self, gradient: Tensor) -> None:
        # Autograd goes from the loss back to the waveform, and adds to `grad` at once. So with the
        # gradient of the features, those of all later layers are complete. With several forward
        # passes they are complete with the gradient of the last of their features.
        self._awaited -= 1
        if self._awaited == 0:
            self._parts[0].send()

    def finish(self) -> None:
        """Store the sums in `grad`, where they stay until the next update's."""
        for part in self._parts:
            part.send()
        for part in self._parts:
            part.receive()


class _GradientPart:
    """Parameters whose gradients are sent together, from memory kept for them.

    fairseq copies each gradient there and back. Here all are copied at once, and stay there.
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
        """Begin the sum, once."""
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
        """Wait for the sum, on a GPU in the stream alone, and store it in `grad`."""
        assert self._work is not None
        self._work.wait()
        self._work = None
        for p, place in zip(self.parameters, self._places, strict=True):
            p.grad = place


def _trained(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def can_sum(module: object) -> bool:
    """Return whether this is a wrapped model whose gradients `GradientSums` can sum."""
    if not isinstance(module, LegacyDistributedDataParallel):
        return False
    parameters = _trained(module.module)
    shared = not any(hasattr(p, "expert") for p in parameters)
    return shared and len({(p.dtype, p.device) for p in parameters}) == 1
