"""Each line of docs/clusters.md on a real Slurm of two nodes, which this starts and stops.

Opt-in, for minutes: MUSIC_SSL_SLURM=1 python -m pytest tests/integration. Needs what
tests/integration/slurm.sh says.
"""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests import EXAMPLES, ROOT
from tests.audio_files import write_tone
from tests.fairseq_commands import logged
from tests.probing.probing_data import write_audio, write_probing

pytestmark = pytest.mark.skipif(
    os.environ.get("MUSIC_SSL_SLURM") != "1", reason="starts a Slurm: MUSIC_SSL_SLURM=1"
)

SECTION = (ROOT / "docs" / "clusters.md").read_text().split("\n## ")[1]
BLOCKS = re.findall(r"^```\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)
LABEL, SRUN, TORCHRUN, MOVE, PROBE = range(5)
RUNS = ("runs/srun", "runs/torchrun")


def bash(command: str) -> str:
    done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait(condition, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, bash("squeue; tail -n 20 *.log")
        time.sleep(0.5)


def job(number: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S*)", bash(f"scontrol show job {number}")))


def submit(block: int) -> list[str]:
    """Run a block of the page, and return its jobs."""
    before = set(re.findall(r"JobId=(\d+)", bash("scontrol show job")))
    bash(BLOCKS[block])
    return sorted(set(re.findall(r"JobId=(\d+)", bash("scontrol show job"))) - before, key=int)


def reached(update: int, run: str) -> bool:
    log = Path(run, "hydra_train.log")
    return log.exists() and f'"num_updates": "{update}"' in log.read_text()


def stop(run: str, number: str, update: int, command: str) -> None:
    """Stop a training once it has reached an update, and wait until it is back in the queue."""
    restarts = int(job(number)["Restarts"])
    wait(lambda: reached(update, run))
    bash(command)
    wait(lambda: int(job(number)["Restarts"]) == restarts + 1, 60)


def validated(run: str) -> dict[str, float]:
    """Return the last validation of a finished run of 100 updates, without its speed."""
    last = logged(Path(run), "valid")[-1]
    assert last["valid_num_updates"] == 100
    return {name: value for name, value in last.items() if name not in ("valid_wps", "valid_wpb")}


def queue_is_empty() -> bool:
    return not bash("squeue --noheader").strip()


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """A cluster; and a folder of music, manifests and probing tasks, in which it is."""
    folder = tmp_path_factory.mktemp("slurm")
    for i in range(24):
        write_tone(folder / "music" / f"album {i % 4}" / f"{i}.flac", 15, 16000, seed=i)
    write_audio(folder / "clips", 24)
    for kind, name in (("multi-class", "genre"), ("key", "key")):
        write_probing(folder / "probing" / name, folder / "clips", kind, name=name)
    (folder / "examples").symlink_to(EXAMPLES)
    script, cluster = ROOT / "tests" / "integration" / "slurm.sh", folder / "cluster"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SLURM_CONF", str(cluster / "slurm.conf"))
        patch.setenv("PYTHONPATH", str(ROOT))
        bash("python -m manifests_tools pretrain --root music --valid-share 0.25")
        try:
            bash(f"bash {script} start {cluster} > started 2>&1 || {{ cat started; exit 1; }}")
            yield folder
        finally:
            bash(f"bash {script} stop {cluster}")


def test_page_has_these_blocks():
    assert len(BLOCKS) == 5


def test_training_waits_for_the_array_of_labels():
    *array, training = submit(LABEL)
    assert len(array) in (1, 4)  # tasks that wait are one entry
    assert job(training)["JobState"] == "PENDING"
    wait(queue_is_empty)
    assert job(training)["JobState"] == "COMPLETED", bash(f"tail -n 30 pretrain-{training}.log")
    assert json.loads(Path("labels/metadata.json").read_text())["k"] == 100
    assert validated("runs/music_hubert/tiny")


def test_stopped_twice_they_train_as_without_a_stop():
    jobs = {}
    for block, move, run in zip((SRUN, TORCHRUN), BLOCKS[MOVE].splitlines(), RUNS, strict=True):
        (jobs[run],) = submit(block)
        stop(run, jobs[run], 20, move)
    for run, number in jobs.items():
        stop(run, number, 60, f"scontrol requeue {number}")
    wait(queue_is_empty)
    alone = validated("runs/music_hubert/tiny")
    for run, number in jobs.items():
        assert job(number)["JobState"] == "COMPLETED"
        output = bash(f"cat *-{number}.log")
        assert "stopped by SIGUSR1: update " in output
        assert f"writes to {run}, from update " in output
        assert validated(run) == alone


def test_jobs_of_a_sweep_are_collected():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    bash(BLOCKS[PROBE])
    assert len(list(Path("runs/probing").glob("*/*/probe.json"))) == 4
    assert len(list(Path("runs/probing").glob("*/*/test.json"))) == 4
    assert any(Path("report").iterdir())
