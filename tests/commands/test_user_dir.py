"""`--user-dir music_ssl_fairseq`, typed anywhere, is the package's folder."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import music_ssl_fairseq
from tests import ROOT

FOLDER = str(ROOT / "music_ssl_fairseq")

# Python's start, with the .pth file as it is installed; this prints the arguments that are left.
START = "import site, sys; site.addsitedir(sys.argv.pop(1)); print(*sys.argv[1:])"


def started(folder: Path, *arguments: str) -> list[str]:
    """Return the command line of a program that is started in `folder`."""
    run = subprocess.run(
        [sys.executable, "-c", START, str(ROOT), *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    return run.stdout.split()


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["--user-dir", "music_ssl_fairseq", "--cpu"], ["--user-dir", FOLDER, "--cpu"]),
        (["data", "--user-dir=music_ssl_fairseq/"], ["data", f"--user-dir={FOLDER}"]),
        (["common.user_dir=music_ssl_fairseq"], [f"common.user_dir={FOLDER}"]),
        (["music_ssl_fairseq", "--root"], ["music_ssl_fairseq", "--root"]),
        (["--user-dir", "clone/music_ssl_fairseq"], ["--user-dir", "clone/music_ssl_fairseq"]),
    ],
)
def test_the_name_is_replaced_by_the_folder(tmp_path, typed, read):
    assert started(tmp_path, *typed) == read


def test_a_package_in_the_current_folder_comes_first(tmp_path):
    typed = ["--user-dir", "music_ssl_fairseq"]
    (tmp_path / "music_ssl_fairseq").mkdir()  # a clone has this name, too
    assert started(tmp_path, *typed) == ["--user-dir", FOLDER]
    (tmp_path / "music_ssl_fairseq" / "__init__.py").touch()
    assert started(tmp_path, *typed) == typed


@pytest.mark.parametrize("editable", [False, True])
def test_it_is_installed_beside_the_packages(tmp_path, monkeypatch, editable):
    setuptools = pytest.importorskip("setuptools")
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["cmdclass"]
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)
    module, _, command = name["build_py"].rpartition(".")
    monkeypatch.setattr("setuptools.command.build_py.build_py.run", lambda self: None)
    distribution = setuptools.Distribution()
    build = getattr(importlib.import_module(module), command)(distribution)
    build.build_lib, build.editable_mode = str(tmp_path / "build"), editable
    distribution.get_command_obj("install").install_lib = str(tmp_path / "wheel")
    for folder in ("build", "wheel"):
        (tmp_path / folder).mkdir()
    build.ensure_finalized()
    build.run()
    found = [file.parent.name for file in tmp_path.rglob("music_ssl_fairseq.pth")]
    assert found == ["wheel" if editable else "build"]


def test_there_is_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    where = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert where == "music_ssl_fairseq.__version__"
    assert f"## {music_ssl_fairseq.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    cited = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {music_ssl_fairseq.__version__}\n" in cited
