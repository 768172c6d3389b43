"""Runs tests/fast/kernels.py in Triton's interpreter, or, on a GPU, with compiled kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def test_kernels_equal_plain_operations():
    """In a process of its own: triton decides at import whether to interpret."""
    pytest.importorskip("triton")
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, str(Path(__file__).with_name("kernels.py"))],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
