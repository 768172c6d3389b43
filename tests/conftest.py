"""Every test starts from the same state of the random generators, on one thread, in no command."""

import logging
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from music_ssl_fairseq.compat import torchaudio_models
from tests.stub_audio import stubs

__all__ = ["stubs"]

torch.set_num_threads(1)
torchaudio_models()  # so that tests can import torchaudio beside a torch of another CUDA


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (fairseq draws from the global generator)
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of the test's own, so that no test depends on those before it."""
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def browser():
    """A Chromium for the tests of pages; without one they are skipped."""
    from tests.browser import open_browser

    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Music, manifests and labels of `make_corpus`, which the tests of a module share."""
    from tests.fairseq_commands import make_corpus  # imports fairseq

    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def here(corpus, tmp_path, monkeypatch) -> Path:
    """A working folder with manifests/ and labels/, where the commands are run."""
    for name in ("manifests", "labels"):
        shutil.copytree(corpus / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def labels_here(monkeypatch) -> None:
    """Let `label` work in this process, which has imported models, as its workers would have to.

    The labels of tests/commands/test_music_hubert_configs.py are made by workers.
    """
    from music_ssl_fairseq.jobs.pool import WorkerPool
    from music_ssl_fairseq.label import job

    monkeypatch.setattr(job, "start_server", lambda _: None)
    monkeypatch.setattr(job, "WorkerPool", lambda *_: WorkerPool(0))


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
    root = logging.getLogger()
    for console in [handler for handler in root.handlers if hasattr(handler, "move")]:
        root.removeHandler(console)  # it would print the warnings of tests that follow
