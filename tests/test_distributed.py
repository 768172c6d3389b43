"""Training in several processes: the same as in one, and nobody waits for a GPU."""

import multiprocessing
import socket
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper, utils
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from torch import nn

from music_ssl_fairseq.compat import exchange_numbers_on_cpu, fork_workers
from music_ssl_fairseq.optim.fused_adamw import FusedAdamW, FusedAdamWConfig
from tests.commands import EXAMPLES, TINY, logged, make_corpus, train

OFF = ("dropout", "attention_dropout", "dropout_input", "encoder_layerdrop")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def group():
    """A process group of this process alone."""
    where = f"tcp://127.0.0.1:{_free_port()}"
    torch.distributed.init_process_group("gloo", init_method=where, world_size=1, rank=0)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_with_twice_the_batches(tmp_path, monkeypatch):
    monkeypatch.chdir(make_corpus(tmp_path))
    same = [*TINY, *(f"model.{name}=0" for name in OFF), "optimization.max_update=4"]
    same += ["checkpoint.no_save=true", "dataset.disable_validation=true"]
    train("music_hubert", *same, "optimization.update_freq=[2]", "hydra.run.dir=one")
    command = [
        *(sys.executable, "-m", "fairseq_cli.hydra_train"),
        *("--config-dir", str(EXAMPLES / "music_hubert"), *same),
        *("common.cpu=true", "distributed_training.distributed_backend=gloo"),
    ]
    several = f"distributed_init_method='tcp://127.0.0.1:{_free_port()}'"
    settings = (several, "distributed_world_size=2", "distributed_no_spawn=true")
    command += [f"distributed_training.{setting}" for setting in settings]
    processes = [
        subprocess.Popen(
            [
                *command,
                f"hydra.run.dir=two_{rank}",
                f"distributed_training.distributed_rank={rank}",
            ],
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    one, two = (logged(Path(run), "train_inner") for run in ("one", "two_0"))
    assert len(one) == len(two) == 4
    for key in ("loss", "loss_m", "accuracy_m", "perplexity_pred", "gnorm", "num_updates"):
        assert [s[key] for s in one] == pytest.approx([s[key] for s in two], rel=2e-3), key


def _start_method() -> str:
    fork_workers()
    return multiprocessing.get_start_method()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are better spawned")
def test_a_spawned_process_forks_its_workers():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as spawned:
        assert spawned.submit(_start_method).result() == "fork"


def test_gradients_are_averaged_as_by_fairseq(group):
    results = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 1))
        wrapped = LegacyDistributedDataParallel(model, group)
        wrapped.world_size = 3  # the sum of one process, over three
        proxy = ModuleProxyWrapper(wrapped)
        model[2].requires_grad_(False)
        model[0](torch.randn(5, 3)).square().sum().backward()  # nothing for the second layer
        optimiser = FusedAdamW(
            OmegaConf.structured(FusedAdamWConfig(lr=[0.1])), [*model[:2].parameters()]
        )
        if ours:
            optimiser.all_reduce_grads(proxy)
        else:
            proxy.all_reduce_grads()
        results.append([p.grad for p in model.parameters()])
    assert results[0][2].abs().sum() == 0
    assert results[0][4] is None
    for theirs, own in zip(*results, strict=True):
        assert own is theirs is None or torch.equal(own, theirs)


def test_numbers_are_exchanged_without_the_gpu(group):
    # There is no GPU here: whoever moved anything to it would fail.
    exchange_numbers_on_cpu()
    data = {"size": 7, "counts": torch.tensor([1.0, 2.0]), "loss": 1.5}
    sums = utils.all_reduce_dict(data, torch.device("cuda"), group)
    assert list(sums) == ["size", "counts", "loss"]
    assert (sums["size"], sums["loss"]) == (7, 1.5)
    assert sums["counts"].tolist() == [1, 2]
    assert sums["counts"].device.type == "cpu"


def test_gradient_norms_of_all_processes_are_compared(group):
    exchange_numbers_on_cpu()
    trainer = Trainer.__new__(Trainer)
    trainer.cfg = OmegaConf.create(
        {
            "common": {"amp": False, "tpu": False},
            "distributed_training": {"distributed_world_size": 1},
        }
    )
    trainer._grad_norm_buf = torch.zeros(1, dtype=torch.double)
    trainer._check_grad_norms(torch.tensor(2.0))
    with pytest.raises(FloatingPointError, match="inconsistent"):
        trainer._check_grad_norms(torch.tensor(float("nan")))
