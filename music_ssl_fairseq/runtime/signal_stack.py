"""Give signal handlers a stack of their own."""

import faulthandler


def give_signals_a_stack() -> None:
    """Let `faulthandler` install an alternate stack for signals to this thread.

    While oneDNN multiplies matrices on a CPU, for example in a positional convolution, the stack
    pointer points into the heap (oneDNN 3.11, issue 4845). The frame of a signal would overwrite
    the heap there, and the process would crash.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(file=2)
