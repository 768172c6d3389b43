"""How many processes are worth starting."""

import os


def available_cpus() -> int:
    """CPUs this process may use: under a job scheduler often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
