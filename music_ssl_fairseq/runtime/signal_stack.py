"""A stack for signals: what has to be there before a process handles any."""

import faulthandler


def give_signals_a_stack() -> None:
    """Let signals to this thread have a stack of their own, which `faulthandler` asks for.

    While oneDNN multiplies matrices on a CPU, in a positional convolution for example, the stack
    pointer points into the heap (oneDNN 3.11, issue 4845). The frame of a signal that comes then
    overwrites what is there, and the process crashes soon after.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(file=2)
