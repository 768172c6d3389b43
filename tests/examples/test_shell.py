"""The shell scripts: what they say when the machine or the call does not suit them."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

BASH = shutil.which("bash")
SETTINGS = ("PYTHON", "MUSIC_SSL_VENV", "MUSIC_SSL_VENVS", "QUICKSTART_DIR")  # of the caller


def bash(command: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        [BASH, "-c", command],
        cwd=ROOT,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def tools(tmp_path):
    """A PATH with a few commands and no Python; `add(name, script)` puts in another."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("dirname", "cat", "mkdir", "rm", "sed"):
        (folder / name).symlink_to(shutil.which(name))

    def add(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    add.path = str(folder)
    return add


def test_all_parse():
    scripts = [*ROOT.glob("examples/**/*.sh"), *ROOT.glob("examples/**/*.sbatch")]
    scripts += [*ROOT.glob("tests/**/*.sh"), ROOT / ".ci/run"]
    assert len(scripts) > 15
    checks = "; ".join(f"bash -n {shlex.quote(str(script))}" for script in scripts)
    assert bash(checks).stderr == ""


def test_finds_a_python_that_works(tools):
    tools("python3.12", "exit 127")  # a shim of pyenv without that version
    tools("python3.11", "exit 0")
    done = bash("source examples/environment.sh; find_python", PATH=tools.path)
    assert done.stdout == f"{tools.path}/python3.11\n"


def test_says_which_python_is_needed(tools):
    tools("python3", "exit 1")  # another version
    done = bash("source examples/environment.sh; find_python", PATH=tools.path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: needs Python 3.11 or 3.12")


def test_takes_the_python_that_is_named(tools):
    tools("mine", "exit 0")
    tools("python3.12", "exit 0")
    named = {"PATH": tools.path, "PYTHON": "mine"}
    done = bash("source examples/environment.sh; find_python", **named)
    assert done.stdout == f"{tools.path}/mine\n"
    done = bash("source examples/environment.sh; find_python", **named | {"PYTHON": "no such"})
    assert done.stderr.startswith("error: PYTHON=no such is no Python 3.11 or 3.12")


def test_makes_its_own_environment_beside_an_active_one(tools, tmp_path):
    tools("python3.12", 'test "$1" = -c || { mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; }')
    (Path(tools.path) / "cp").symlink_to(shutil.which("cp"))
    active, own = tmp_path / "active", tmp_path / "own"
    (active / "bin").mkdir(parents=True)
    done = bash(
        'source examples/environment.sh; use_venv; echo "$VIRTUAL_ENV"; command -v python',
        PATH=tools.path,
        VIRTUAL_ENV=str(active),
        MUSIC_SSL_VENV=str(own),
    )
    assert done.stdout.splitlines()[1:] == [str(own), f"{own}/bin/python"]
    assert not list((active / "bin").iterdir())


def test_refuses_an_environment_of_another_python(tools, tmp_path):
    (tmp_path / "venv").mkdir()
    tools("python", "exit 1")
    (tmp_path / "venv" / "bin").symlink_to(tools.path)
    done = bash("source examples/environment.sh; use_venv", MUSIC_SSL_VENV=str(tmp_path / "venv"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/venv has no Python 3.11 or 3.12")


def test_versions_of_torch_have_environments_of_their_own(tools, tmp_path):
    """The older pair is asked for by number, the newer is what the registry has today."""
    for name in ("mkdir", "cp", "bash", "cksum", "mktemp", "tail"):
        if not (Path(tools.path) / name).exists():
            (Path(tools.path) / name).symlink_to(shutil.which(name))
    log = tmp_path / "log"
    tools(
        "python3.12",
        f'case "$*" in *venv*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python";; '
        f'*pip\\ install*|*pytest*) echo "$0 $*" >> "{log}";; *-P*) exit 1;; esac',
    )
    done = bash(
        f"{BASH} tests/versions.sh -k frames", PATH=tools.path, MUSIC_SSL_VENVS=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    for name, lines_of, wanted in (
        ("oldest", lines[:3], "torch==2.10.* torchaudio==2.10.*"),
        ("newest", lines[3:], "--upgrade torch torchaudio"),
    ):
        assert all(line.startswith(f"{tmp_path}/{name}/bin/python ") for line in lines_of)
        assert wanted in lines_of[0]
        assert lines_of[2].endswith("-m pytest -n 3 --dist worksteal -k frames")


def test_shows_the_end_of_what_pip_said(tools, tmp_path):
    tools("python", 'case "$*" in *install*) echo "no space left on device"; exit 1;; esac')
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "bin").symlink_to(tools.path)
    done = bash(
        "source examples/environment.sh; environment plot",
        MUSIC_SSL_VENV=str(tmp_path / "venv"),
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 1
    assert "no space left on device\nerror: pip could not install" in done.stderr
    assert not list((tmp_path / "venv").glob(".music*"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("examples/quickstart.sh /no/such/folder", "error: /no/such/folder: no such folder"),
        ("examples/quickstart.sh one two", "error: usage: "),
        ("examples/open_music/prepare.sh", "error: usage: "),
        ("examples/open_music/prepare.sh out huge", "error: unknown set 'huge'"),
        ("examples/open_tasks/fetch.sh", "error: usage: "),
        ("examples/open_tasks/judge.sh --small", "error: name an encoder"),
        ("examples/open_tasks/judge.sh mfcc --work", "error: --work needs a folder"),
    ],
)
def test_wrong_calls(command, message):
    done = bash(f"bash {command}")
    assert done.returncode == 1
    assert done.stderr.startswith(message)


def test_quickstart_explains_itself():
    done = bash("bash examples/quickstart.sh --help")
    assert done.returncode == 0
    assert "bash examples/quickstart.sh [MUSIC_DIR]" in done.stdout
    assert "set -euo" not in done.stdout


def test_quickstart_keeps_to_the_music_it_began_with(tmp_path):
    (tmp_path / "music_dir").write_text("/elsewhere\n")
    done = bash("bash examples/quickstart.sh", QUICKSTART_DIR=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path} holds a quickstart with other music, /else")


def test_open_music_needs_apt(tools):
    done = bash(f"{BASH} examples/open_music/prepare.sh /nowhere", PATH=tools.path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: apt-get is not here")


def test_open_music_leaves_out_what_the_open_tasks_take():
    sets = "sed -n '/^SMALL=/,/^$/p' examples/open_music/prepare.sh"
    done = bash(f'eval "$({sets})"; echo "${{#MIDDLE[@]}} ${{LARGE[@]}}"')
    middle, *large = done.stdout.split()
    assert int(middle) < len(large) == len(set(large))
    taken = (ROOT / "examples" / "open_tasks" / "fetch.sh").read_text().split("fetch_packages")[1]
    assert "davegnukem-data" in taken.split()
    assert not set(large) & set(taken.split())


def test_the_judge_explains_itself():
    done = bash("bash examples/open_tasks/judge.sh --help")
    assert done.returncode == 0
    assert "judge.sh [--small] [--work DIR] [OPTION...] ENCODER..." in done.stdout
    assert "set -euo" not in done.stdout


def test_open_tasks_want_every_package(tools, tmp_path):
    for name in ("mv", "rmdir"):
        (Path(tools.path) / name).symlink_to(shutil.which(name))
    tools("apt-cache", 'case "$2" in klettres-data) ;; *) echo "$2:";; esac')
    tools("apt-get", ": > package.deb")
    tools("dpkg-deb", 'mkdir -p "$3/usr"')
    done = bash(f"{BASH} examples/open_tasks/fetch.sh '{tmp_path}/out'", PATH=tools.path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this release does not have: klettres-data")


def test_open_music_unpacks_what_apt_has(tools, tmp_path):
    """One package is there already, one is fetched, two this release does not have."""
    for name in ("mv", "rmdir", "du", "cut"):
        (Path(tools.path) / name).symlink_to(shutil.which(name))
    tools("apt-cache", 'case "$2" in w*-*) echo "$2:";; esac')
    tools("apt-get", ": > package.deb")
    tools("dpkg-deb", 'mkdir -p "$3/usr"; : > "$3/usr/song.ogg"; : > "$3/usr/more.pk3"')
    tools("python3", '[ "$1 $2 $3" = "-m zipfile -e" ] && mkdir "$5" && : > "$5/other.ogg"')
    out = tmp_path / "open music"
    (out / "warzone2100-music").mkdir(parents=True)
    done = bash(f"{BASH} examples/open_music/prepare.sh '{out}'", PATH=tools.path)
    assert done.returncode == 0, done.stderr
    assert "warzone2100-music: already here" in done.stdout
    assert "this release does not have: singularity-music colobot-common-sounds" in done.stdout
    unpacked = sorted(str(path.relative_to(out)) for path in out.glob("wizznic-data/**/*.*"))
    assert unpacked == ["wizznic-data/usr/more/other.ogg", "wizznic-data/usr/song.ogg"]
    assert sorted(os.listdir(out)) == ["warzone2100-music", "wizznic-data"]
