"""Versions that must fit, checkpoints that must not run code, and a plugin that must be found."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu

from music_ssl_fairseq import compat
from music_ssl_fairseq.errors import InputError


def test_versions_fit_here():
    compat.check_versions()


def test_a_torchaudio_of_another_torch_is_one_line(monkeypatch):
    monkeypatch.setattr(compat, "version", {"torch": "2.8.0", "torchaudio": "2.11.0"}.get)
    with pytest.raises(InputError, match=r'torchaudio 2\.11 .*pip install "torchaudio==2\.8\.\*"'):
        compat.check_versions()


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


class _Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": _Malicious()}, "bad.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_checkpoint_to_cpu("bad.pt")
    assert not (tmp_path / "executed").exists()


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, music_ssl_fairseq, manifests_tools; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("use", ["load('none.pt')", "register()"])
def test_logging_stays_as_it_was(use):
    """fairseq sets the root logger's level, prints all notes and asks for tensorboardX."""
    code = (
        "import contextlib, logging, sys, music_ssl_fairseq\n"
        "with contextlib.suppress(ValueError):\n"
        f"    music_ssl_fairseq.{use}\n"
        "asking = logging.getLogger('fairseq.tasks.text_to_speech')\n"
        "print(asking.name in sys.modules, logging.root.level, logging.root.handlers, asking.level)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True 30 [] 0"
    assert "tensorboardX" not in run.stderr


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
    compat.stop_loading({"train": SimpleNamespace(dataloader=loader), "valid": SimpleNamespace()})
    assert not any(worker.is_alive() for worker in workers)
