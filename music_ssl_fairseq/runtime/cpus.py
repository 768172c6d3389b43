"""Count the CPUs of this process."""

import os


def available_cpus() -> int:
    """Return the CPUs this process may use: under a job scheduler often fewer than exist."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
