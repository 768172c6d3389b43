"""`--user-dir music_ssl_fairseq`, typed anywhere, is the package's folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

FOLDER = str(ROOT / "music_ssl_fairseq")

# Python's start, with the .pth file as it is installed; this prints the arguments that are left.
START = "import site, sys; site.addsitedir(sys.argv.pop(1)); print(*sys.argv[1:])"


def started(folder: Path, *arguments: str) -> list[str]:
    """What a program finds on its command line when it is started in `folder`."""
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
    command = pytest.importorskip("setuptools.command.build_py")
    from distutils.core import run_setup

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(command.build_py, "run", lambda self: None)
    setup = run_setup("setup.py", stop_after="init")
    build = setup.get_command_obj("build_py")
    build.build_lib, build.editable_mode = str(tmp_path / "build"), editable
    setup.get_command_obj("install").install_lib = str(tmp_path / "wheel")
    for folder in ("build", "wheel"):
        (tmp_path / folder).mkdir()
    build.ensure_finalized()
    build.run()
    found = [file.parent.name for file in tmp_path.rglob("music_ssl_fairseq.pth")]
    assert found == ["wheel" if editable else "build"]
