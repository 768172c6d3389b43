"""Numbers from the GPU, one call late, so that nobody waits for them."""

import torch
from torch import Tensor


class DelayedFetch:
    """Hands back what the call before brought, while the present is still being computed.

    Python runs ahead of a GPU: it asks for kernels long before they run. To look at a number is to
    wait until the GPU has come to it, and then the GPU waits for Python in turn. A training loop
    that looks at a number of each update can look at that of the update before for nothing.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Take a tensor of any shape.

        Returns:
            The tensor of the call before, on the CPU; at the first call, and for a tensor that is
            on the CPU already, the tensor itself.
        """
        if not values.is_cuda:
            return values
        copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        copy.copy_(values.detach(), non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        previous = self._pending or (copy, copied)
        self._pending = (copy, copied)
        previous[1].synchronize()
        return previous[0]
