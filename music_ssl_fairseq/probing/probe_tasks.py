"""Probe one encoder on several tasks in this process; what is finished is not made again.

`python -m music_ssl_fairseq probe` and examples/open_tasks/judge.py both do so.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from music_ssl_fairseq import compat as _compat  # noqa: F401 (before fairseq, which logs)
from music_ssl_fairseq.data.audio_identity import AUDIO
from music_ssl_fairseq.data.run_identity import (
    Identity,
    contents_of,
    differences,
    digest_of,
    settings_identity,
)
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.probing import train_and_score
from music_ssl_fairseq.probing.config import PROBE_CONFIGS
from music_ssl_fairseq.probing.features.source import FeatureSource
from music_ssl_fairseq.probing.labels import probing_identity
from music_ssl_fairseq.probing.spec import read_spec
from music_ssl_fairseq.probing.writer import check_leakage
from music_ssl_fairseq.runtime.files import require_writable, write_json
from music_ssl_fairseq.runtime.machine import choose_device
from music_ssl_fairseq.runtime.texts import read_object
from music_ssl_fairseq.runtime.user_command import beside, with_option

STAMP = "made_of.json"
"""Written beside the results at the end: the data and settings that they come from."""

_RESULTS = "results"  # in the stamp: their digest
_GROUPS = ("dataset", "optimization", "optimizer")  # beside task and model
_MAX_NAME_CHARACTERS = 60


@dataclass(frozen=True)
class TaskProbe:
    """A task, and where its results go."""

    data: Path  # folder of `task.json`
    out: Path  # folder of the results
    # What differs from the defaults, by dotted names
    settings: dict[str, Any] = field(default_factory=dict)


def folder_name(upstream: str, source: FeatureSource) -> str:
    """Name a folder after an upstream and its fingerprint, so that another one has another."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", upstream).strip("_")[-_MAX_NAME_CHARACTERS:]
    return f"{name}-{source.fingerprint[:8]}"


def probe_all(
    source: FeatureSource,
    probes: Sequence[TaskProbe],
    shared: dict[str, Any],
    split: str = "test",
    anew: bool = False,
) -> Iterator[tuple[TaskProbe, bool]]:
    """Train and score each probe, and yield it with whether there was something to do.

    Raises InputError about a setting, a task's folder, or results of other data or settings, before
    anything is computed.

    Args:
        source: the open upstream.
        shared: settings of all probes, `model.upstream` and `task.cache_dir` among them.
        split: to score on.
        anew: replace results of other data or settings, which are an error otherwise.
    """
    prepared = []
    for probe in probes:
        own = {"task.data": str(probe.data), "task.output_dir": str(probe.out)}
        cfg = train_and_score.settings({**shared, **probe.settings, **own})
        made_of = probe_identity(cfg, source, split)
        prepared.append((probe, cfg, made_of, _is_done(probe.out, made_of, split, anew)))
        if not prepared[-1][-1]:
            require_writable(probe.out, "--out")
    tasks = ", ".join(str(probe.data) for probe, *_, done in prepared if not done)
    if tasks:
        where = choose_device("cpu" if shared.get("common.cpu") else "auto")
        print(f"probing {shared['model.upstream']} on {tasks}; device {where}", file=sys.stderr)
    for probe, cfg, made_of, done in prepared:
        if not done:
            (probe.out / STAMP).unlink(missing_ok=True)
            train_and_score.run(cfg, source, split)
            write_json(probe.out / STAMP, {**made_of, _RESULTS: _results(probe.out, split)})
        yield probe, not done


def probe_identity(cfg: DictConfig, source: FeatureSource, split: str) -> Identity:
    """Identify a probe by its clips, labels, encoder and settings, wherever the files lie."""
    spec = read_spec(cfg.task.data)
    check_leakage(cfg.task.data)
    splits = list(dict.fromkeys(("train", "valid", split)))
    plain: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    settings = settings_identity({name: plain[name] for name in PROBE_CONFIGS}, PROBE_CONFIGS)
    for group in _GROUPS:
        settings |= {f"{group}.{name}": str(value) for name, value in plain[group].items()}
    settings["common.seed"] = str(cfg.common.seed)
    if spec.of_kind.has_beats:
        settings["task.decoder"] = cfg.task.decoder
    data = probing_identity(cfg.task.data, spec, splits)
    return {**settings, **data, "upstream": source.fingerprint[:16]}


def _is_done(out: Path, made_of: Identity, split: str, anew: bool) -> bool:
    """Return whether a folder has these results.

    Raises InputError if it has others, unless they are to be made `anew`.
    """
    try:
        there = read_object(out / STAMP)
    except InputError:  # missing or damaged: not finished
        return False
    found = differences(made_of, there)
    noted = there.pop(_RESULTS, None)  # older results have none
    lacking = [name for name in made_of.keys() ^ there.keys() if not name.startswith(AUDIO)]
    if found and not anew:
        raise InputError(
            f"{out}: holds a probe of other data or settings: {found}. Give another --out, or "
            "--force to replace it",
            with_option("--out", beside(out.parent.parent)),
        )
    results = _results(out, split)
    if results and noted in (None, results):
        return not (found or lacking)
    print(f"{out}: results are missing, damaged or changed: probed again", file=sys.stderr)
    return False


def _results(out: Path, split: str) -> str:
    """Digest what the report reads of a probe; empty if a file is missing."""
    files = [out / name for name in ("probe.json", f"{split}.json", f"{split}_predictions.npz")]
    return digest_of(contents_of(*files)) if all(map(Path.is_file, files)) else ""
