"""Every test starts from the same state of the random generators, on one thread, in no command."""

import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.stub_audio import stubs

__all__ = ["stubs"]

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (fairseq draws from the global generator)
    torch.manual_seed(0)


_ARGV = list(sys.argv)


@pytest.fixture(autouse=True)
def no_command() -> Iterator[None]:
    """Take back what a test, or a fixture of its module, leaves of a command in this process.

    So errors pass as in Python, whichever tests ran before.
    """
    _forget_command()
    yield
    _forget_command()


def _forget_command() -> None:
    sys.argv = list(_ARGV)
    if "hydra.core.hydra_config" in sys.modules:
        sys.modules["hydra.core.hydra_config"].HydraConfig.instance().cfg = None
