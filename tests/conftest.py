"""Every test starts from the same state of the random generators, on one thread."""

import random

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
