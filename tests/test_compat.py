"""Versions that must fit, checkpoints that must not run code, and a plugin that must be found."""

import multiprocessing
import pickle
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils

from music_ssl_fairseq import compat
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.training.processes import stop_loading
from music_ssl_fairseq.upstream.safe_load import safe_load
from tests.checkpoints import Attack


def test_torch_is_safe_here():
    compat.check_unpickler()


def test_checkpoints_of_fairseq_load_safely(tmp_path):
    import argparse

    from fairseq.data.dictionary import Dictionary
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"task": {"data": "manifests", "seeds": [1, 2]}})
    state = {
        "args": argparse.Namespace(arch="hubert"),
        "cfg": cfg,
        "task_state": {"dictionaries": [Dictionary()]},
        "model": {"weight": torch.ones(2)},
    }
    torch.save(state, tmp_path / "old.pt")
    loaded = torch.load(tmp_path / "old.pt", map_location="cpu")  # as fairseq calls it
    assert loaded["cfg"].task.seeds == [1, 2]
    assert len(loaded["task_state"]["dictionaries"][0]) == 4
    assert torch.equal(loaded["model"]["weight"], torch.ones(2))


@pytest.mark.parametrize("way", ["zip", "legacy", "pickle", "tar", "text", "cut", "folder", "bare"])
def test_fairseq_refuses_a_bad_checkpoint_in_one_line(tmp_path, way):
    path = tmp_path / "bad.pt"
    bad = {"model": {}, "cfg": {}, "evil": Attack(f"touch {tmp_path / 'executed'}")}
    if way == "pickle":
        path.write_bytes(pickle.dumps(bad))
    elif way == "tar":
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("pickle"))
    elif way == "text":
        path.write_text("no checkpoint")
    elif way == "folder":
        path.mkdir()
    elif way == "bare":
        torch.save({"weight": torch.ones(2)}, path)
    else:
        torch.save(bad, path, _use_new_zipfile_serialization=way != "legacy")
    if way == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError) as error:
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)
    assert ("could run code" in str(error.value)) == (way in ("zip", "legacy", "pickle"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("torch_version", "is_safe"),
    [("2.9.1", False), ("2.6.0+cu124", False), ("2.10.0", True), ("2.15.0+cpu", True)],
)
def test_a_torch_that_may_run_code_is_refused(monkeypatch, tmp_path, torch_version, is_safe):
    monkeypatch.setattr(compat, "version", {"torch": torch_version}.__getitem__)
    torch.save({}, tmp_path / "x.pt")
    if is_safe:
        assert safe_load(tmp_path / "x.pt") == {}
        return
    for check in (compat.check_unpickler, lambda: safe_load(tmp_path / "x.pt")):
        with pytest.raises(InputError, match=r"lets a checkpoint run code .*CVE-2026-24747"):
            check()


@pytest.mark.parametrize(
    ("torch_version", "wanted"), [("2.10.0", r"2\.10"), ("2.14.1+cpu", r"2\.11")]
)
def test_a_torchaudio_that_cannot_be_imported_is_one_line(monkeypatch, torch_version, wanted):
    monkeypatch.setitem(sys.modules, "torchaudio.models", None)
    monkeypatch.setattr(compat, "version", {"torch": torch_version}.__getitem__)
    with pytest.raises(InputError, match=rf'run `pip install "torchaudio=={wanted}\.\*"`'):
        compat.torchaudio_models()


HELP = """
import contextlib, sys
import manifests_tools.__main__ as tools
import music_ssl_fairseq.__main__ as package

heavy = {"fairseq", "faiss", "librosa", "scipy", "soundfile", "torch", "manifests_tools.pretrain"}
calls = [(package, [name]) for name in sorted(package.COMMANDS, key="label".__eq__)]
for program, command in [(tools, []), *calls]:
    with contextlib.suppress(SystemExit):
        program.main([*command, "--help"])
    found = (heavy | {"numpy"} if command != ["label"] else heavy) & set(sys.modules)
    assert not found, (command, found)
"""


def test_help_of_every_command_loads_nothing_heavy():
    """numpy is loaded by `label` alone, which is the last."""
    run = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for shown in ("pretrain ", "check ", "--pool", "python -m music_ssl_fairseq label --k 2000"):
        assert shown in run.stdout


FORKS = """
import contextlib, logging, os, sys
import torch  # once for all of them
import music_ssl_fairseq

def load():
    with contextlib.suppress(ValueError):
        music_ssl_fairseq.load("none.pt")
    return logs()

def register():
    music_ssl_fairseq.register()
    return logs()

def logs():
    asking = logging.getLogger("fairseq.tasks.text_to_speech")
    return asking.name in sys.modules, logging.root.level, logging.root.handlers, asking.level

def torchaudio_models():
    torch.version.cuda = "99.1"
    from music_ssl_fairseq.compat import torchaudio_models
    return torchaudio_models().__name__, torch.version.cuda

for use in (load, register, torchaudio_models):
    if os.fork() == 0:
        print(use.__name__, *use(), flush=True)
        os._exit(0)
    os.wait()
"""


def test_what_only_a_new_process_shows():
    """What fairseq and torchaudio do when they are imported.

    fairseq sets the root logger's level, prints all notes and asks for tensorboardX: logging stays
    as it was. torchaudio refuses a torch of another CUDA: here it loads.
    """
    run = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "load True 30 [] 0",
        "register True 30 [] 0",
        "torchaudio_models torchaudio.models 99.1",
    ]
    assert run.stderr == ""


def test_the_plugin_leaves_other_configurations_alone(tmp_path):
    """fairseq's own behaviour for a --config-dir that is not ours, and no import of the package."""
    (tmp_path / "config.yaml").write_text("task: {_name: dummy_lm}\n")
    code = (
        "import sys; sys.argv = ['x', '--config-dir', sys.argv[1]]\n"
        "from hydra._internal.utils import create_config_search_path\n"
        "path = create_config_search_path(None)\n"
        "print([p.provider for p in path.get_path()], 'music_ssl_fairseq' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['hydra', 'schema'] False"


def test_stop_loading_ends_the_workers():
    others = set(multiprocessing.active_children())
    loader = torch.utils.data.DataLoader(range(8), num_workers=2, persistent_workers=True)
    batches = iter(loader)
    next(batches)
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    stop_loading({"train": SimpleNamespace(dataloader=loader), "valid": SimpleNamespace()})
    assert not any(worker.is_alive() for worker in workers)
