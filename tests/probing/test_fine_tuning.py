"""An encoder that is trained along with its head: which tensors move, resuming, scores."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.models.music_probe import MusicProbeModel
from music_ssl_fairseq.probing.config import HeadGridConfig
from music_ssl_fairseq.probing.experiment import ProbeExperiment
from music_ssl_fairseq.probing.heads.adam import SHARE, RowAdam, RowAdamConfig
from music_ssl_fairseq.probing.heads.fine_tuning import FineTunedProbe, check_settings
from music_ssl_fairseq.probing.heads.probe_heads import Head, ProbeHeads
from music_ssl_fairseq.probing.heads.update import loss_and_logs, update
from music_ssl_fairseq.probing.spec import KINDS
from music_ssl_fairseq.report import __main__ as report_command
from music_ssl_fairseq.upstream import load
from tests import checkpoints, tiny
from tests.options import with_defaults
from tests.probing.probing_data import train, validate, write_audio, write_probing

make_report = with_defaults(report_command)

SMALL = (
    *("task.window_seconds=1", "model.hidden_size=16", "optimization.max_epoch=2"),
    *("common.cpu=true", "dataset.batch_size=6", "dataset.num_workers=0"),
    *("model.frozen_updates=1", "model.encoder_learning_rate=0.0001"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    write_audio(folder / "audio", 24, 1.6)
    torch.manual_seed(3)
    checkpoints.write(folder / "encoder.pt", "music_hubert", tiny.music_hubert())
    for kind in ("multi-class", "beats", "regression"):
        write_probing(folder / kind, folder / "audio", kind)
    return folder


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def probe_of(home: Path, kind: str = "multi-class", **settings) -> ProbeExperiment:
    """A probe with its model, as the task builds it."""
    task = {"data": str(home / kind), "decoder": "peaks", "window_seconds": 1.0, "cpu": True}
    task |= {"upstream": str(home / "encoder.pt"), "upstream_seed": 0, "output_dir": str(home)}
    probe = ProbeExperiment(OmegaConf.create({**task, "expected": None, "seed": 1}))
    given = {"unfreeze": "all", "layers": "all", "learning_rates": [0.01], "hidden_size": 16}
    cfg = HeadGridConfig(upstream="", seed=1, **{**given, **settings})
    assert check_settings(cfg)
    probe.unfreeze = cfg.unfreeze
    probe.dataset("train")
    probe.model = FineTunedProbe(cfg, probe.inputs(), probe.encoder(), probe.plan.per_frame)
    return probe


def steps(probe: ProbeExperiment, count: int, optimizer: RowAdam | None = None) -> RowAdam:
    """Make updates with the same batch, as fairseq's trainer does."""
    dataset, model = probe.dataset("train"), probe.model
    batch = dataset.collater([dataset[i] for i in range(6)])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer or RowAdam(RowAdamConfig(), parameters)
    model.train()
    for number in range(count):
        torch.manual_seed(number)
        model.set_num_updates(number)
        optimizer.set_heads(model.active.tolist(), model.learning_rates())
        update(model, optimizer, batch, probe.spec.of_kind)
    return optimizer


def moved(probe: ProbeExperiment, home: Path) -> set[str]:
    before = load(home / "encoder.pt").state_dict()
    after = probe.model.encoder.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("unfreeze", "layers", "named"),
    [
        ("top-1", "all", ("encoder.layers.2.",)),
        ("top-2", "all", ("encoder.layers.1.", "encoder.layers.2.")),
        ("top-2", "2", ("encoder.layers.1.",)),
        ("all", "all", ("",)),
        ("all", "0", ("feature_extractor", "model.layer_norm", "post_extract_proj")),
    ],
)
def test_the_named_tensors_move_and_no_others(home, unfreeze, layers, named):
    probe = probe_of(home, unfreeze=unfreeze, layers=layers)
    steps(probe, 2)
    found = moved(probe, home)
    assert all(any(part in name for part in named) for name in found)
    wanted = {
        name
        for name, _ in probe.model.encoder.named_parameters()
        # The bias of keys has no gradient; masks are not used.
        if any(p in name for p in named) and not name.endswith(("mask_emb", "k_proj.bias"))
    }
    assert {name for name in found if not name.endswith("k_proj.bias")} == wanted


def test_the_encoder_waits_for_the_head(home):
    probe = probe_of(home, frozen_updates=2)
    heads = probe.model.heads.state(0)
    optimizer = steps(probe, 2)
    assert not moved(probe, home)
    assert not torch.equal(probe.model.heads.state(0)["output_bias"], heads["output_bias"])
    steps(probe, 3, optimizer)
    assert moved(probe, home)


def test_each_layer_has_its_rate_and_falls_with_the_head(home):
    probe = probe_of(home, encoder_learning_rate=1e-4, layer_decay=0.5)
    shares = {n: getattr(p, SHARE) for n, p in probe.model.encoder.named_parameters()}
    rates = {n: s * 0.01 for n, s in shares.items()}
    assert rates["model.encoder.layers.2.fc1.weight"] == pytest.approx(1e-4)
    assert rates["model.encoder.layers.0.fc1.weight"] == pytest.approx(0.25e-4)
    assert rates["model.post_extract_proj.weight"] == pytest.approx(0.125e-4)
    optimizer = steps(probe, 1)
    before = probe.model.encoder.model.encoder.layers[2].fc1.bias.detach().clone()
    optimizer._rates = [0.001]  # a tenth of the head's first rate
    optimizer.step()
    change = (probe.model.encoder.model.encoder.layers[2].fc1.bias - before).abs().max()
    assert 0 < change <= 1.1e-5


def test_gradients_reach_the_features_as_in_plain_modules():
    torch.manual_seed(0)
    heads = ProbeHeads([Head("1", 0.1), Head("all", 0.1)], ["0", "1", "2"], 5, 4, 3, 0.0, 1)
    torch.nn.init.normal_(heads.mix)
    features = torch.randn(7, 3, 5, requires_grad=True)
    heads(features).square().sum().backward()
    found, features.grad = features.grad, None
    mixed = (heads.mix[1].softmax(0)[:, None] * features[:, 1:]).sum(1)
    total = 0
    for i, x in enumerate((features[:, 1], mixed)):
        hidden = (x @ heads.hidden_weight[i].t() + heads.hidden_bias[i]).relu()
        total += (hidden @ heads.output_weight[i].t() + heads.output_bias[i]).square().sum()
    total.backward()
    torch.testing.assert_close(found, features.grad)


@pytest.mark.parametrize("kind", ["multi-class", "beats", "regression"])
def test_windows_are_encoded_as_for_a_frozen_encoder(home, kind, tmp_path):
    """Windows of several lengths: in evaluation, with first weights, the features are the same."""
    probe = probe_of(home, kind)
    model, dataset = probe.model.eval(), probe.dataset("train")
    batch = dataset.collater([dataset[i] for i in range(4)])
    found = []
    model.heads.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    _, size, logs = loss_and_logs(model, batch, KINDS[kind])
    frozen = probe_of(home, kind)
    frozen.unfreeze, frozen._datasets = "", {}
    frozen.cfg.cache_dir, frozen.cfg.cache_limit_gb = str(tmp_path), 1.0
    cached = frozen.dataset("train")
    wanted = cached.collater([cached[i] for i in range(4)])
    assert size == wanted["ntokens"]
    assert torch.equal(batch["target"], wanted["target"])
    features = wanted["net_input"]["features"].float()
    torch.testing.assert_close(found[0], features, rtol=2e-3, atol=2e-3)
    assert logs["predictions"]["sizes"] == wanted["sizes"]


def test_the_best_state_is_kept_and_scored(home):
    probe = probe_of(home)
    steps(probe, 1)
    probe.model.take_scores(torch.tensor([0.5]), 1)
    best = {n: t.clone() for n, t in probe.model.encoder.state_dict().items()}
    optimizer = steps(probe, 2)
    probe.model.take_scores(torch.tensor([0.4]), 2)
    fresh = probe_of(home).model
    fresh.load_state_dict(probe.model.state_dict())
    assert optimizer.state_dict()["encoder"]["state"]
    fresh.scoring = True
    fresh.eval()
    batch = probe.dataset("train").collater([probe.dataset("train")[0]])
    fresh(**batch["net_input"])
    for name, tensor in fresh.encoder.state_dict().items():
        assert torch.equal(tensor, best[name]), name


def losses(run: Path) -> list[str]:
    lines = (run / "hydra_train.log").read_text().splitlines()
    return [line.partition("{")[2] for line in lines if '"train_loss"' in line]


def test_a_run_trains_resumes_validates_and_is_reported(here):
    """Stopped after an epoch, it ends with the weights of a run that was not."""
    data, options = here / "multi-class", (*SMALL, "task.save_seconds=0")
    train(data, "encoder.pt", here / "whole", *options, name="fine_tune")
    run = here / "stopped"
    train(data, "encoder.pt", run, *options, "optimization.max_update=2", name="fine_tune")
    train(data, "encoder.pt", run, *options, name="fine_tune")
    files = [folder / "checkpoints" / "checkpoint_best.pt" for folder in (here / "whole", run)]
    whole, stopped = (torch.load(file, weights_only=False)["model"] for file in files)
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    validate(data, run)
    scored = json.loads((run / "test.json").read_text())
    assert scored["upstream"] == "encoder, fine-tuned (all)"
    assert 0 <= scored["metrics"]["accuracy"] <= 1
    text = make_report([run], here / "report", resamples=10, no_plot=True)
    assert "encoder, fine-tuned (all)" in text
    assert not (here / "feature_cache").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unfreeze": "top-4"}, "model.unfreeze=top-4: expected none, all, or top-1 to top-3"),
        ({"unfreeze": "some"}, "model.unfreeze=some: expected none, all"),
        ({"layers": None}, "trains one head, not 5: give one layer"),
        ({"learning_rates": [0.1, 0.2]}, "trains one head, not 2"),
        ({"unfreeze": "top-1", "layers": "2"}, "trains layers from 3 on, and the head is on layer"),
        ({"unfreeze": "none", "frozen_updates": 5}, "model.frozen_updates goes with model.unfree"),
    ],
)
def test_wrong_settings_are_one_line(home, settings, message):
    with pytest.raises(InputError, match=message):
        probe_of(home, **settings)


def test_a_front_end_has_nothing_to_train(home):
    probe = probe_of(home)
    probe.cfg.upstream = "mfcc"
    del probe.source
    cfg = HeadGridConfig(layers="all", learning_rates=[0.01])
    with pytest.raises(InputError, match="mfcc has nothing to train"):
        MusicProbeModel.build_model(cfg, SimpleNamespace(probe=probe))
