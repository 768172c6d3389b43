"""Training in several processes: the same as in one, without synchronising with a GPU."""

import itertools
import json
import multiprocessing
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper, utils
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from music_ssl_fairseq.optim.fused_adamw import FusedAdamW, FusedAdamWConfig
from music_ssl_fairseq.training.processes import exchange_numbers_on_cpu, fork_workers
from tests import tiny
from tests.fairseq_commands import SHALLOW, logged, make_corpus, train

OFF = ("dropout", "attention_dropout", "dropout_input", "encoder_layerdrop")


def _meeting_place(folder: Path) -> str:
    """Name a new file by which processes find each other. A free port may be taken meanwhile."""
    return f"file://{tempfile.mkdtemp(dir=folder)}/meet"


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    where = _meeting_place(tmp_path)
    torch.distributed.init_process_group("gloo", init_method=where, world_size=1, rank=0)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def _train_noting(rank: int, overrides: list[str], fails_in: int, fails_late_in: int) -> None:
    """Train, and note in `sums_RANK.json` what is summed, and whether within a backward pass.

    Two batches run out of memory: `fails_in` before all else, `fails_late_in` after it.
    """
    all_reduce, train_step = torch.distributed.all_reduce, FairseqTask.train_step
    sums: list[list] = []
    batches = itertools.count(1)

    def noted(tensor, *args, **kwargs):
        sums.append([tensor.numel(), torch._C._current_graph_task_id() >= 0])
        return all_reduce(tensor, *args, **kwargs)

    def failing(*args, **kwargs):
        batch = next(batches)
        if batch == fails_in:
            raise RuntimeError("out of memory")
        result = train_step(*args, **kwargs)
        if batch == fails_late_in:
            raise RuntimeError("out of memory")
        return result

    torch.distributed.all_reduce, FairseqTask.train_step = noted, failing
    train("music_hubert", *overrides)
    Path(f"sums_{rank}.json").write_text(json.dumps(sums))


def _train_two(*overrides: str, fails_in: int = 0, fails_late_in: int = 0) -> list[list[list]]:
    """Train in two processes, in runs `two_0` and `two_1`, of which the second runs out of memory.

    They are forks of this one, which has imported everything.

    Returns:
        Of each process, all sums: how many numbers, and whether within a backward pass.
    """
    several = f"distributed_init_method='{_meeting_place(Path.cwd())}'"
    settings = (several, "distributed_world_size=2", "distributed_no_spawn=true")
    common = [
        *(*overrides, "common.cpu=true", "distributed_training.distributed_backend=gloo"),
        *(f"distributed_training.{setting}" for setting in settings),
    ]
    processes = []
    for rank in range(2):
        own = [f"hydra.run.dir=two_{rank}", f"distributed_training.distributed_rank={rank}"]
        arguments = (rank, [*common, *own], rank * fails_in, rank * fails_late_in)
        fork = multiprocessing.get_context("fork")
        processes.append(fork.Process(target=_train_noting, args=arguments))
        processes[-1].start()
    try:
        for process in processes:
            process.join(240)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [json.loads(Path(f"sums_{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def tiny_run(tmp_path, monkeypatch):
    """Settings of a run of four updates; in a folder with its data."""
    monkeypatch.chdir(make_corpus(tmp_path))
    same = [*SHALLOW["music_hubert"], *(f"model.{name}=0" for name in OFF)]
    return [
        *same,
        "optimization.max_update=4",
        "checkpoint.no_save=true",
        "dataset.disable_validation=true",
    ]


# The logged measures of an update, and the last digit that is written of each.
DIGITS = {"loss": 1e-4, "loss_m": 1e-4, "accuracy_m": 1e-5, "perplexity_pred": 0.01, "gnorm": 1e-3}


def test_two_processes_train_as_one_with_twice_the_batches(tiny_run):
    """Without dropout, which each process draws for itself; at a rate that moves the loss.

    With Muon, which leaves all but matrices to fused AdamW.
    """
    tiny_run += ["lr_scheduler.warmup_updates=1", "optimization.lr=[0.003]"]
    tiny_run += ["optimizer._name=muon"]
    train("music_hubert", *tiny_run, "optimization.update_freq=[2]", "hydra.run.dir=one")
    sums = _train_two(*tiny_run)
    one, two = (logged(Path(run), "train_inner") for run in ("one", "two_0"))
    assert len(one) == len(two) == 4
    assert one[3]["loss"] < 0.8 * one[0]["loss"]
    for key, digit in DIGITS.items():
        assert [s[key] for s in one] == pytest.approx([s[key] for s in two], abs=1.01 * digit), key
    assert [s["num_updates"] for s in two] == [1, 2, 3, 4]
    assert sums[0] == sums[1]
    early = [numbers for numbers, within_backward in sums[0] if within_backward]
    assert early == [max(numbers for numbers, _ in sums[0])] * 4


def test_processes_go_on_together_when_one_runs_out_of_memory(tiny_run):
    """At the end of the second update's last batch, and in the first batch of the fourth."""
    tiny_run.append("optimization.update_freq=[2]")
    sums = _train_two(*tiny_run, fails_in=6, fails_late_in=4)
    assert Path("two_1", "hydra_train.log").read_text().count("OOM: Ran out of memory") == 2
    assert [s["num_updates"] for s in logged(Path("two_0"), "train_inner")] == [1, 2, 3, 4]
    both = [[numbers for numbers, _ in of_process] for of_process in sums]
    assert both[0] == both[1]
    early = [sum(within_backward for _, within_backward in of_process) for of_process in sums]
    assert early == [4, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are better spawned")
def test_a_spawned_process_forks_its_workers():
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)  # as Python does in a spawned process
    try:
        fork_workers()
        assert multiprocessing.get_start_method() == "fork"
    finally:
        multiprocessing.set_start_method(before, force=True)


class _Extracting(nn.Module):
    """A model with an extractor, a layer that may be dropped, and one that is not trained."""

    def __init__(self, trains_extractor: bool):
        super().__init__()
        self.trains_extractor = trains_extractor
        self.early = nn.Linear(4, 2)  # the order of parameters is not that of the computation
        self.feature_extractor = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.dropped, self.layer = False, nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 1).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(self.trains_extractor):
            features = self.feature_extractor(x)
        x = self.early(features)
        x = x if self.dropped else self.layer(x)
        return self.frozen(x).square().sum() + features.square().mean()


def _as_in_training(model: nn.Module, group, world_size: int = 1) -> tuple:
    """Return fairseq's wrapper, our optimizer and what it trains; sums are of one process alone."""
    wrapped = LegacyDistributedDataParallel(model, group)
    wrapped.world_size = world_size
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = FusedAdamW(OmegaConf.structured(FusedAdamWConfig(lr=[0.1])), trained)
    return ModuleProxyWrapper(wrapped), optimiser, trained


def _plain(_: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 1).requires_grad_(False))


@pytest.fixture
def sums(monkeypatch):
    """Of each sum, the number of numbers; negative if it began within a backward pass."""
    found, all_reduce = [], torch.distributed.all_reduce

    def noted(tensor, *args, **kwargs):
        early = torch._C._current_graph_task_id() >= 0
        found.append(-tensor.numel() if early else tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.distributed, "all_reduce", noted)
    return found


@pytest.mark.parametrize(
    ("make", "trains_extractor", "passes", "expected"),
    [
        (_plain, True, 1, [26]),
        (_Extracting, True, 1, [-16, 16]),
        (_Extracting, True, 2, [-16, 16]),  # in one batch
        (_Extracting, False, 1, [16, 16]),  # feature_grad_mult=0
    ],
)
def test_gradients_are_averaged_as_by_fairseq(
    make, trains_extractor, passes, expected, group, sums
):
    results: list[list] = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = make(trains_extractor)
        proxy, optimiser, _ = _as_in_training(model, group, world_size=3)
        results.append([])
        for model.dropped in (False, True):  # updates, of two batches each
            optimiser.zero_grad()
            for synchronise in (proxy.no_sync(), nullcontext()):
                with synchronise, optimiser.batch(proxy) if ours else nullcontext():
                    sum(proxy(torch.randn(5, 3)).sum() for _ in range(passes)).backward()
            if ours:
                optimiser.all_reduce_grads(proxy)
            else:
                proxy.all_reduce_grads()
                sums.clear()
            results[-1] += [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    assert sums == expected * 2
    assert any(gradient is None for gradient in results[0])
    for theirs, own in zip(*results, strict=True):
        assert own is theirs is None or torch.equal(own, theirs)


@pytest.mark.parametrize("on_the_way", [False, True])
def test_norms_are_of_averages(on_the_way, group, monkeypatch):
    # On a GPU, gradients are divided by the number of processes as they are scaled.
    monkeypatch.setattr(FusedAdamW, "_scales_in_step", on_the_way)
    model = _Extracting(True)
    proxy, optimiser, trained = _as_in_training(model, group, world_size=4)
    for _ in range(2):
        optimiser.zero_grad()
        with optimiser.batch(proxy):
            proxy(torch.ones(5, 3)).backward()
        norm = torch.stack([p.grad.norm() for p in trained]).norm()
        optimiser.all_reduce_grads(proxy)
        optimiser.multiply_grads(8)
        torch.testing.assert_close(optimiser.clip_grad_norm(0), norm * 2)


def test_a_process_that_runs_out_of_memory_sends_zeros(group, sums):
    model = _Extracting(True)
    proxy, optimiser, trained = _as_in_training(model, group)
    for p in trained:
        p.grad = torch.ones_like(p)  # of an earlier batch of the update
    with pytest.raises(RuntimeError, match="out of memory"), optimiser.batch(proxy):
        raise RuntimeError("out of memory")
    optimiser.zero_grad()
    assert sums == [16]
    optimiser.all_reduce_grads(proxy)
    assert sums == [16, 16]
    assert not any(p.grad.any() for p in trained)
    assert not model.feature_extractor._forward_hooks


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("music_hubert", {}),
        ("music_hubert", {"precision": "bf16"}),
        ("music2vec", {"precision": "bf16"}),
        # The teacher has an extractor, too.
        ("music2vec", {"ema_transformer_only": False, "ema_layers_only": False}),
    ],
)
def test_all_gradients_but_the_extractors_are_there_when_they_are_sent(
    family, settings, group, sums
):
    results = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = getattr(tiny, family)(feature_grad_mult=0.1, **settings)
        proxy, optimiser, trained = _as_in_training(model, group)
        data = tiny.batch()
        units = data.pop("units")
        with optimiser.batch(proxy) if ours else nullcontext():
            model.set_num_updates(0)  # makes the teacher
            if family == "music_hubert":
                output = proxy(**data, target=units + 4)
                loss = F.cross_entropy(output["logits_m"][0], output["target_m"][:, 0])
                loss = loss + output["features_pen"]
            else:
                output = proxy(**data)
                loss = F.mse_loss(output["prediction"], output["teacher_target"])
            loss.backward()
        if ours:
            optimiser.all_reduce_grads(proxy)
        results.append([p.grad for p in trained])
    extractor = sum(p.numel() for p in model.feature_extractor.parameters())
    assert sums == [extractor - sum(p.numel() for p in trained), extractor]
    for plain, own in zip(*results, strict=True):
        assert torch.equal(torch.zeros_like(own) if plain is None else plain, own)


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
