"""The thirteen tasks as a user runs them: train, validate, report; and what is refused."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq.dataclass.configs import FairseqConfig
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from sklearn import metrics as sklearn

from hydra_plugins._music_ssl_fairseq_refusals import merged
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.scoring.predictions import Predictions
from music_ssl_fairseq.probing.scoring.results import write_heads
from music_ssl_fairseq.report import __main__ as report_command
from music_ssl_fairseq.report.__main__ import main as report_main
from music_ssl_fairseq.tasks import refusals
from music_ssl_fairseq.tasks.music_probing import MusicProbingTask
from tests import EXAMPLES, tiny
from tests.options import with_defaults
from tests.probing.probing_data import train, validate, write_audio, write_probing

make_report = with_defaults(report_command)

KINDS = {
    **{"mtt": "multi-label", "giantsteps_key": "key", "gtzan_genre": "multi-class"},
    **{"gtzan_beat": "beats", "emomusic": "regression"},
    **{"nsynth_instrument": "multi-class", "nsynth_pitch": "multi-class"},
    **{"vocalset_singer": "multi-class", "vocalset_technique": "multi-class"},
    **{f"mtg_{name}": "multi-label" for name in ("instrument", "moodtheme", "genre", "top50")},
}
SMALL = (
    *("task.window_seconds=1", "model.hidden_size=16", "optimization.max_epoch=3"),
    *("model.layers='0,2,all'", "model.learning_rates=[0.001,0.01]", "common.cpu=true"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Audio, an encoder's checkpoint and a task of every kind."""
    folder = tmp_path_factory.mktemp("probing")
    write_audio(folder / "audio", 24)
    save_encoder(folder / "encoder.pt", seed=3)
    for kind in set(KINDS.values()):
        write_probing(folder / kind, folder / "audio", kind)
    return folder


@pytest.fixture(scope="module")
def trained(home):
    """Return a function that gives a run of a kind of task, which is trained once."""

    @functools.cache
    def run_of(kind: str) -> Path:
        run = home / f"runs/trained-{kind}"
        with contextlib.chdir(home):
            train(home / kind, "encoder.pt", run, *SMALL, "dataset.batch_size_valid=3")
        return run

    return run_of


def save_encoder(file: Path, seed: int, rate: int | None = None) -> None:
    torch.manual_seed(seed)
    model = tiny.music_hubert()
    fields = {**OmegaConf.to_container(model.cfg, enum_to_str=True), "_name": "music_hubert"}
    task = {"_name": "music_hubert_pretraining", "normalize": False, "sample_rate": rate or 16000}
    torch.save({"cfg": {"model": fields, "task": task}, "model": model.state_dict()}, file)


@pytest.fixture
def here(home, monkeypatch):
    """All in one working folder, so that the cache is shared."""
    monkeypatch.chdir(home)
    return home


def scores(run: Path, split="test") -> dict:
    return json.loads((run / f"{split}.json").read_text())


@pytest.mark.parametrize("name", KINDS)
def test_a_task_trains_and_one_of_each_kind_is_validated_and_reported(here, name):
    kind, run = KINDS[name], Path("runs") / name
    data = here / name
    shutil.copytree(here / kind, data)
    task = json.loads((data / "task.json").read_text())
    task["name"] = name.replace("_", "-")
    (data / "task.json").write_text(json.dumps(task))
    train(data, "encoder.pt", run, *SMALL, name=name)
    heads = json.loads((run / "probe.json").read_text())["rows"]
    assert [head["layer"] for head in heads] == ["0", "0", "2", "2", "all", "all"]
    assert sum(head["chosen"] for head in heads) == 1
    best = max(heads, key=lambda head: head["score"])
    assert next(head for head in heads if head["chosen"])["score"] == best["score"]
    if name != next(other for other in KINDS if KINDS[other] == kind):
        return
    validate(data, run)
    found = scores(run)
    assert found["task"] == task["name"]
    assert found["files"] == 6
    assert all(-100 < value <= 1 for value in found["metrics"].values())
    text = make_report([run], Path("report") / name, resamples=20, no_plot=True)
    assert task["name"] in text
    assert (Path("report") / name / "report.csv").stat().st_size > 100
    assert task["name"] in (Path("report") / name / "report.html").read_text()


def test_every_task_has_a_config_with_the_protocol_s_values():
    found = {path.stem for path in (EXAMPLES / "probing").glob("*.yaml")}
    assert found == KINDS.keys() | {"config", "fine_tune", "run_folder"}
    config = OmegaConf.load(EXAMPLES / "probing/config.yaml")
    assert config.model.learning_rates == [5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2]
    assert (config.model.hidden_size, config.model.dropout) == (512, 0.2)
    assert (config.dataset.batch_size, config.task.window_seconds) == (64, 5)


@pytest.mark.parametrize("kind", ["multi-class", "multi-label", "regression", "key"])
def test_scores_do_not_depend_on_batches_workers_or_the_command(here, trained, kind):
    run = trained(kind)
    found = []
    # Workers know nothing of the kind, and starting them takes longer than all else here.
    workers = [["--num-workers", "2"]] if kind == "multi-label" else []
    for options in (["--batch-size", "64"], ["--batch-size", "1"], *workers):
        for old in run.glob("test*"):
            old.unlink()
        validate(here / kind, run, *options)
        found.append(scores(run)["metrics"])
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-6)
    saved = Predictions.load(run / "test_predictions.npz")
    if kind == "multi-label":
        there = saved.targets.any(0) & ~saved.targets.all(0)
        expected = sklearn.roc_auc_score(saved.targets[:, there], saved.outputs[:, there])
        assert found[0]["macro_roc_auc"] == pytest.approx(expected, abs=1e-6)
    if kind == "regression":
        expected = sklearn.r2_score(saved.targets, saved.outputs)
        assert found[0]["r2"] == pytest.approx(expected, abs=1e-6)
    if kind != "key":  # in batches of 64, and of 3 in training
        validate(here / kind, run, split="valid")
        about = scores(run, "valid")
        assert about["metrics"][about["metric"]] == pytest.approx(about["valid_score"], abs=1e-6)


def test_a_head_in_fairseq_s_loop_is_the_probe_trained_alone(here):
    grid, alone = Path("runs/grid"), Path("runs/alone")
    train(here / "multi-class", "encoder.pt", grid, *SMALL, "dataset.batch_size=5")
    one = ("model.layers='2'", "model.learning_rates=[0.01]", "dataset.batch_size=5")
    train(here / "multi-class", "encoder.pt", alone, *SMALL, *one)
    heads = json.loads((grid / "probe.json").read_text())["rows"]
    expected = next(r for r in heads if (r["layer"], r["learning_rate"]) == ("2", 0.01))
    (found,) = json.loads((alone / "probe.json").read_text())["rows"]
    for key in ("score", "best_epoch", "epochs"):
        assert found[key] == pytest.approx(expected[key])


def test_a_run_whose_heads_have_all_stopped_says_what_came_of_it(here):
    run = Path("runs/stopped")
    one = ("model.layers=all", "model.learning_rates=[0.01]", "model.patience=1")
    train(here / "multi-class", "encoder.pt", run, *SMALL, *one, "optimization.max_epoch=0")
    log = (run / "hydra_train.log").read_text()
    assert "trained: " in log
    assert "next: fairseq-validate " in log


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(here):
    whole, cut = Path("runs/whole"), Path("runs/cut")
    options = [*SMALL, "dataset.batch_size=5", "model.patience=2", "model.lr_patience=1"]
    options.remove("optimization.max_epoch=3")
    train(here / "regression", "encoder.pt", whole, *options, "optimization.max_epoch=7")
    # The last epoch of a run stops all heads: an interruption does not.
    first = [*options, "optimization.max_epoch=4", "+task.last_epoch=0", "task.save_seconds=0"]
    train(here / "regression", "encoder.pt", cut, *first)
    train(here / "regression", "encoder.pt", cut, *options, "optimization.max_epoch=7")
    tables = [json.loads((run / "probe.json").read_text())["rows"] for run in (whole, cut)]
    for head, expected in zip(*tables, strict=True):
        assert head == pytest.approx(expected)
    before = (cut / "rows.csv").stat().st_mtime_ns
    train(here / "regression", "encoder.pt", cut, *options, "optimization.max_epoch=7")
    assert (cut / "rows.csv").stat().st_mtime_ns == before  # nothing left to do
    assert (cut / "hydra_train.log").read_text().count("finished: ") == 1


SAVING = [*SMALL, "dataset.batch_size=2", "task.save_seconds=0"]


@pytest.fixture(scope="module")
def undisturbed(home):
    """A run with the settings SAVING."""
    with contextlib.chdir(home):
        train(home / "regression", "encoder.pt", Path("runs/undisturbed"), *SAVING)
    return home / "runs/undisturbed"


@pytest.mark.parametrize(("method", "call"), [("train_step", 4), ("valid_step", 2)])
def test_a_signal_saves_a_probe_and_it_goes_on(here, undisturbed, monkeypatch, method, call):
    run = Path("runs", f"stopped_{method}")
    original, calls = getattr(Trainer, method), []

    def sending(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(Trainer, method, sending)
    with pytest.raises(SystemExit) as end:
        train(here / "regression", "encoder.pt", run, *SAVING)
    assert end.value.code == 75
    assert [file.name for file in run.glob("checkpoints/*.pt")] == ["checkpoint_best.pt"]
    train(here / "regression", "encoder.pt", run, *SAVING)
    whole, cut = (
        json.loads((run / "probe.json").read_text())["rows"] for run in (undisturbed, run)
    )
    assert cut == [pytest.approx(head) for head in whole]


def test_a_finished_probe_is_small_and_loads_safely(trained):
    file = trained("multi-class") / "checkpoints/checkpoint_best.pt"
    state = torch.load(file, weights_only=True)
    assert state["model"]["heads.hidden_weight"].shape[0] == 0
    assert state["model"]["chosen_hidden_weight"].shape == (1, 16, 32)
    assert [path.name for path in file.parent.glob("*.pt")] == [file.name]


def test_front_ends_and_random_weights_are_upstreams(here, trained):
    fingerprints = {json.loads((trained("multi-class") / "probe.json").read_text())["fingerprint"]}
    for upstream in ("mfcc", "random:encoder.pt"):
        run = Path("runs") / f"upstream-{upstream.replace(':', '-')}"
        options = [option for option in SMALL if not option.startswith("model.layers")]
        train(here / "multi-class", upstream, run, *options)
        validate(here / "multi-class", run)
        found = scores(run)
        fingerprints.add(found["fingerprint"])
        if upstream == "mfcc":
            assert found["layer"] == upstream
    assert len(fingerprints) == 3


def test_groups_are_songs(here):
    data = write_probing(here / "songs", here / "audio", "multi-class", clips_a_group=2)
    run = Path("runs/songs")
    train(data, "encoder.pt", run, *SMALL)
    validate(data, run)
    found = scores(run)
    assert (found["files"], found["groups"]) == (6, 3)
    assert "group accuracy" in make_report([run], Path("report/songs"), resamples=9, no_plot=True)


def refused(capsys, call, *args, **kwargs) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as end:
        call(*args, **kwargs)
    message = str(end.value)
    assert message.startswith("error: ")
    assert message.count("\n") <= 1  # a command may follow
    return message


def test_a_probe_is_not_scored_with_another_upstream(here, trained, capsys):
    run = trained("multi-class")
    save_encoder(here / "other.pt", seed=1)
    message = refused(
        capsys, validate, here / "multi-class", run, "--upstream", str(here / "other.pt")
    )
    assert "trained on another upstream than" in message
    assert "other.pt" in message
    message = refused(capsys, train, here / "multi-class", "other.pt", run, *SMALL)
    assert "another hydra.run.dir" in message


def test_labels_that_are_missing_or_unknown(here, trained, capsys, tmp_path):
    data, run = shutil.copytree(here / "multi-class", tmp_path / "data"), trained("multi-class")
    labels = (data / "test.labels").read_text()
    (data / "test.labels").unlink()
    assert "test.labels: no such file" in refused(capsys, validate, data, run)
    (data / "test.labels").write_text(labels.replace("low", "lower", 1))
    message = refused(capsys, validate, data, run)
    assert "'lower' is not one of the 3 classes" in message
    assert "test.labels, line 1" in message


@pytest.mark.parametrize(
    ("overrides", "upstream", "says"),
    [
        (["model.layers='0,9'"], "encoder.pt", "no layer '9'"),
        (["task.decoder=ear"], "encoder.pt", "task.decoder 'ear': one of dbn, librosa, peaks"),
        (["task.window_seconds=-1"], "encoder.pt", "task.window_seconds=-1.0: expected 0"),
        (["task.cache_limit_gb=0", "task.cache_dir=none"], "encoder.pt", "task.cache_limit_gb"),
        (["optimization.update_freq=[2]", "dataset.batch_size=1"], "encoder.pt", "update_freq"),
        ([], "gone.pt", "gone.pt"),
        ([], "fast.pt", "24000 Hz"),
    ],
)
def test_settings_that_cannot_be(here, capsys, overrides, upstream, says):
    save_encoder(here / "fast.pt", seed=3, rate=24000)
    run = Path("runs/refused")
    message = refused(capsys, train, here / "multi-class", upstream, run, *SMALL, *overrides)
    assert says in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset.train_subset", "valid"),
        ("dataset.valid_subset", "valid,test"),
        ("dataset.disable_validation", True),
        ("dataset.max_valid_steps", 2),
        ("optimizer._name", "adam"),
        ("common.bf16", True),
        ("checkpoint.maximize_best_checkpoint_metric", False),
    ],
)
def test_settings_of_fairseq_that_a_probe_cannot_have(name, value):
    of_fairseq = {k: OmegaConf.structured(v) for k, v in vars(FairseqConfig()).items() if v}
    cfg = OmegaConf.merge(of_fairseq, merged(EXAMPLES / "probing", "config"))
    refusals.refuse_in_probes(cfg)
    OmegaConf.update(cfg, name, value)
    with pytest.raises(InputError, match=re.escape(f"{name}={value}: not for a probe: ")):
        refusals.refuse_in_probes(cfg)


def test_memory_efficient_precision_without_that_precision_is_refused():
    of_fairseq = {k: OmegaConf.structured(v) for k, v in vars(FairseqConfig()).items() if v}
    cfg = OmegaConf.merge(of_fairseq, merged(EXAMPLES / "music_hubert", "config"))
    refusals.refuse_impossible(cfg)
    OmegaConf.update(cfg, "common.memory_efficient_bf16", True)
    with pytest.raises(InputError, match=r"without common\.bf16=true it has no effect"):
        refusals.refuse_impossible(cfg)


@pytest.mark.parametrize("name", refusals._FIXED)
def test_settings_of_fairseq_that_no_run_can_have(name):
    cfg = OmegaConf.create()
    OmegaConf.update(cfg, name, True)
    with pytest.raises(InputError, match=f"{name}=True: "):
        refusals._refuse_others(cfg, refusals._FIXED, "")


@pytest.mark.parametrize("split", ["test", "valid"])
def test_the_next_command_scores_a_split_that_is_there(tmp_path, split):
    (tmp_path / f"{split}.tsv").touch()
    task = SimpleNamespace(cfg=SimpleNamespace(data=tmp_path))
    cfg = SimpleNamespace(checkpoint=SimpleNamespace(save_dir=tmp_path))
    assert f"--valid-subset {split} " in MusicProbingTask.next_command(task, cfg)


def test_a_folder_without_scores_is_one_line(tmp_path, capsys):
    assert report_main([str(tmp_path)]) == 1
    assert "no scored probe below" in capsys.readouterr().err


def test_two_tasks_do_not_share_a_folder(here, capsys, tmp_path):
    first, other = here / "multi-class", shutil.copytree(here / "multi-class", tmp_path / "other")
    task = json.loads((other / "task.json").read_text())
    (other / "task.json").write_text(json.dumps({**task, "name": "another"}))
    run = tmp_path / "run"
    train(first, "encoder.pt", run, *SMALL)
    validate(first, run)
    results = [run / name for name in ("test.json", "probe.json", "rows.csv")]
    before = [file.read_bytes() for file in results]
    message = refused(capsys, train, other, "encoder.pt", run, *SMALL)
    assert "task is another (multi-class, accuracy) and was " in message
    assert "another hydra.run.dir" in message
    message = refused(capsys, validate, other, run)
    assert "not the task that this probe was trained on" in message
    message = refused(capsys, validate, first, run, "--window-seconds", "2")
    assert "task.window_seconds is 2.0 and was 1.0" in message
    assert "leave out --fp16" in refused(capsys, validate, first, run, "--fp16")
    labels = (other / "train.labels").read_text().splitlines(keepends=True)
    (other / "train.labels").write_text("".join([*labels[1:], labels[0]]))
    (other / "task.json").write_text(json.dumps(task))
    assert "labels of train is [" in refused(capsys, train, other, "encoder.pt", run, *SMALL)
    validate(other, run)  # the same question: other labels are no reason not to score it
    # Written before checkpoints said so.
    file = run / "checkpoints/checkpoint_best.pt"
    torch.save(torch.load(file, weights_only=True) | {"task_state": {}}, file)
    (other / "task.json").write_text(json.dumps({**task, "name": "another"}))
    for command in (lambda: train(other, "encoder.pt", run, *SMALL), lambda: validate(other, run)):
        assert "probe.json: holds a probe of the task " in refused(capsys, command)
    assert [file.read_bytes() for file in results] == before


def test_heads_are_not_written_over_another_task_s(tmp_path):
    write_heads(tmp_path, {"task": "first"}, [])
    write_heads(tmp_path, {"task": "first"}, [])
    with pytest.raises(InputError, match="holds a probe of the task first, not of second"):
        write_heads(tmp_path, {"task": "second"}, [])
    assert json.loads((tmp_path / "probe.json").read_text())["task"] == "first"


def test_a_configuration_refuses_another_task_s_folder(here, capsys):
    data, run = here / "multi-class", Path("runs/not-mtt")
    message = refused(capsys, train, data, "encoder.pt", run, *SMALL, name="mtt")
    assert "but this configuration is for mtt" in message
    assert not list(run.rglob("*.pt"))


@pytest.mark.parametrize(
    ("given", "says"), [("task.data=???", "task.data=DIR"), ("model.upstream=", "upstream=FILE")]
)
def test_what_is_not_given_is_one_line(here, capsys, given, says):
    run = Path("runs/missing")
    message = refused(capsys, train, here / "multi-class", "mfcc", run, given)
    assert f"{given.partition('=')[0]} is missing: give " in message
    assert says in message


def test_a_head_that_diverges_is_left_behind_by_the_others(here):
    run = Path("runs") / "diverged"
    small = [option for option in SMALL if "learning_rates" not in option]
    train(here / "regression", "encoder.pt", run, *small, "model.learning_rates=[0.01,1e30]")
    heads = json.loads((run / "probe.json").read_text())["rows"]
    assert [head["score"] is None for head in heads] == [False, True] * 3
    assert [head["learning_rate"] for head in heads if head["chosen"]] == [0.01]
