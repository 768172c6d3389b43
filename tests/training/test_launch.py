"""Several processes: how they find each other, and how they end together."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.distributed import utils
from omegaconf import OmegaConf
from torch.multiprocessing import ProcessExitedException

from hydra_plugins import music_ssl_fairseq_launch as launch
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.training import saving

# fairseq's own, also after a command of another test.
DISTRIBUTED_INIT = getattr(utils.distributed_init, "args", [utils.distributed_init])[0]
INFER_INIT_METHOD = getattr(utils.infer_init_method, "args", [utils.infer_init_method])[0]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def settings(rank: int, port: int):
    fields = {
        "distributed_rank": rank,
        "distributed_world_size": 2,
        "distributed_backend": "gloo",
        "distributed_init_method": f"tcp://127.0.0.1:{port}",
    }
    cfg = {"distributed_training": fields, "common": {"tpu": False, "model_parallel_size": 1}}
    return OmegaConf.create(cfg)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_comes_ends_the_others(rank):
    start = time.monotonic()
    with pytest.raises(SystemExit) as end:
        launch._distributed_init(DISTRIBUTED_INIT, 1, settings(rank, free_port()))
    assert time.monotonic() - start < 15
    message = str(end.value)
    assert "\n" not in message
    assert f"process {rank} of 2: not all came to tcp://127.0.0.1:" in message
    assert not torch.distributed.is_initialized()


def test_once_together_they_have_the_usual_patience():
    alone = settings(0, free_port())
    alone.distributed_training.distributed_world_size = 1
    launch._distributed_init(DISTRIBUTED_INIT, 7, alone)
    try:
        group = torch.distributed.distributed_c10d._get_default_group()
        backend = group._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(minutes=30)
        assert torch.distributed.distributed_c10d._get_default_store().timeout > timedelta(
            seconds=7
        )
    finally:
        torch.distributed.destroy_process_group()


def test_slurm_s_numbers_that_do_not_fit_are_one_line(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_NNODES", "1")

    def infer(cfg):
        torch.cuda.set_device(3)  # fairseq does, with Slurm and without a GPU
        raise AssertionError("8, 16, 1")

    with pytest.raises(SystemExit) as end:
        launch._infer_init_method(infer, SimpleNamespace(distributed_world_size=16))
    message = str(end.value)
    assert "\n" not in message
    assert "Slurm runs 8 tasks on 1 nodes" in message
    assert "distributed_world_size is 16" in message
    assert "srun --nodes=N" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs fairseq counts them")
@pytest.mark.parametrize("starter", ["torchrun", "slurm"])
def test_one_process_per_node_is_one_of_all(starter, monkeypatch, tmp_path):
    """A world size of 1, fairseq's default for a node of one GPU, or without a GPU."""
    there = {"MASTER_ADDR": "node1", "MASTER_PORT": "1", "WORLD_SIZE": "4", "RANK": "3"}
    slurm = {"STEP_NODELIST": "node[1-4]", "NNODES": "4", "NTASKS_PER_NODE": "1", "NODEID": "3"}
    for name, value in there.items() if starter == "torchrun" else slurm.items():
        monkeypatch.setenv(name if starter == "torchrun" else f"SLURM_{name}", value)
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node1\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    size = 1 if starter == "torchrun" else 4
    given = {"distributed_world_size": size, "distributed_port": 29671, "tpu": False}
    cfg = OmegaConf.structured(DistributedTrainingConfig(**given))
    launch._infer_init_method(INFER_INIT_METHOD, cfg)
    assert (cfg.distributed_rank, cfg.distributed_world_size, cfg.device_id) == (3, 4, 0)
    assert (
        cfg.distributed_init_method == {"torchrun": "env://", "slurm": "tcp://node1:29671"}[starter]
    )
    assert (cfg.distributed_no_spawn, cfg.distributed_backend) == (True, "gloo")


class _Context:
    """What torch's spawn returns: one process, that ends once it gets a signal."""

    def __init__(self):
        sleep = "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75));"
        command = [sys.executable, "-c", f"{sleep} print(flush=True); time.sleep(30)"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.process.stdout.readline()
        self.process.is_alive = lambda: self.process.poll() is None
        self.processes = [self.process]

    def join(self):
        os.kill(os.getpid(), signal.SIGUSR1)
        code = self.process.wait(10)
        raise ProcessExitedException(
            "ended", error_index=0, error_pid=self.process.pid, exit_code=code
        )


def test_signals_go_on_to_spawned_processes_and_their_status_comes_back():
    before = {
        number: signal.getsignal(number) for number in map(signal.Signals, (1, 2, 10, 12, 15))
    }
    try:
        with pytest.raises(SystemExit) as end:
            launch._spawn(lambda *args, **kwargs: _Context(), None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == 75


@pytest.fixture
def patches_undone(monkeypatch):
    for module, name in (
        *((utils, "distributed_init"), (utils, "infer_init_method")),
        (torch.multiprocessing, "spawn"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))


@pytest.mark.usefixtures("patches_undone")
def test_fairseq_is_patched_once():
    launch.Launch(rendezvous_seconds=7).on_job_start(OmegaConf.create())
    patched = utils.distributed_init
    launch.Launch(rendezvous_seconds=9).on_job_start(OmegaConf.create())
    assert utils.distributed_init is patched
    assert isinstance(torch.multiprocessing.spawn, type(patched))


@pytest.mark.usefixtures("patches_undone")
@pytest.mark.parametrize(
    ("cpu", "width", "threads"), [(False, 768, 1), (True, 768, 3), (True, 96, 1)]
)
@pytest.mark.parametrize("set_by_user", [False, True])
def test_gpus_and_tiny_models_compute_with_one_thread(
    monkeypatch, cpu, width, threads, set_by_user
):
    for name in launch._THREADS:
        monkeypatch.setenv(name, "3")  # so that what is set here is undone
        monkeypatch.delenv(name)
    if set_by_user:
        monkeypatch.setenv("MKL_NUM_THREADS", "5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.set_num_threads(3)
    try:
        settings = {"common": {"cpu": cpu}, "model": {"encoder_embed_dim": width}}
        launch.Launch().on_job_start(OmegaConf.create(settings))
        assert torch.get_num_threads() == (3 if set_by_user else threads)
    finally:
        torch.set_num_threads(1)
    expected = "1" if threads == 1 and not set_by_user else None
    assert os.environ.get("OMP_NUM_THREADS") == expected


def test_fairseq_s_asynchronous_saving_without_iopath_is_one_line(monkeypatch):
    """fairseq would end without training, with exit status 0."""
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    config = OmegaConf.create({"checkpoint": {"write_checkpoints_asynchronously": True}})
    with pytest.raises(SystemExit, match=r"^error: .*needs the package iopath"):
        launch.Launch().on_job_start(config)


def test_a_state_that_one_process_sends_to_the_others_can_be_read(tmp_path):
    """fairseq's `broadcast_object`: a checkpoint's tensors travel apart from the rest of it."""
    state = {"model": {"weight": torch.ones(2)}, "cfg": {"task": "x"}}
    holder = utils._TensorPlaceholder(index=3)
    torch.save({**state, "model": {"weight": holder}}, tmp_path / "sent")
    received = torch.load(tmp_path / "sent", map_location="cpu")
    assert received == {**state, "model": {"weight": holder}}


def test_processes_agree_on_the_file_to_resume_from(tmp_path, monkeypatch):
    """The first process sends its file's name in types that are safe to read."""

    def sent(found, **_):
        torch.save(found, tmp_path / "sent")
        return torch.load(tmp_path / "sent")

    monkeypatch.setattr(saving.distributed_utils, "broadcast_object", sent)
    trainer = SimpleNamespace(
        data_parallel_rank=0, data_parallel_world_size=2, checkpoint_suffix=""
    )
    trainer.data_parallel_process_group = trainer.device = None
    last = tmp_path / "checkpoint_last.pt"
    assert saving._find_in_all_processes(trainer, tmp_path, last) is None
    extra = {"train_iterator": {}}
    torch.save({"model": {}, "optimizer_history": [{"num_updates": 1}], "extra_state": extra}, last)
    assert saving._find_in_all_processes(trainer, tmp_path, last) == last
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(InputError, match=r"checkpoint_last.pt"):
        saving._find_in_all_processes(trainer, tmp_path, last)
