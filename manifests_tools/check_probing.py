"""Check the folder of a probing task."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from manifests_tools.findings import Findings
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing.labels import ProbingSplit
from music_ssl_fairseq.probing.spec import read_spec
from music_ssl_fairseq.probing.writer import check_leakage


def check_probing(folder: Path, splits: list[str], findings: Findings) -> None:
    """Read the labels of all splits; report wrong ones and songs in two splits."""
    _try(partial(check_leakage, folder), findings)
    try:
        task = read_spec(folder)
    except InputError as error:
        findings.add("task", str(error))
        return
    for split in splits:
        _try(partial(ProbingSplit, folder, split, task), findings)


def _try(check: Callable[[], object], findings: Findings) -> None:
    try:
        check()
    except InputError as error:
        findings.add("probing labels", str(error))
