"""Check manifests, their audio and their labels: `python -m manifests_tools check`."""

import argparse
import contextlib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from manifests_tools.examine import COPY, SILENT, add_reading_options, examine, parallel_map
from manifests_tools.find import FileId, identify
from music_ssl_fairseq import audio
from music_ssl_fairseq.cli import Parser
from music_ssl_fairseq.data.copies import find_copies
from music_ssl_fairseq.data.label_check import check_labels
from music_ssl_fairseq.data.label_metadata import labels_beside, read_label_rate, read_metadata
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.left_out import kind_of
from music_ssl_fairseq.data.manifest import Manifest, concerns, missing_manifest
from music_ssl_fairseq.data.units import UnitDictionary
from music_ssl_fairseq.errors import AudioError, InputError, one_line, warn
from music_ssl_fairseq.frames import SAMPLE_RATE, amount, counted, hours, label_hop, labels_fit
from music_ssl_fairseq.probing.labels import ProbingSplit
from music_ssl_fairseq.probing.spec import FILE as TASK_FILE
from music_ssl_fairseq.probing.spec import read_spec
from music_ssl_fairseq.probing.writer import check_leakage
from music_ssl_fairseq.runtime.files import checksum
from music_ssl_fairseq.runtime.user_command import with_path

_MAX_LINES = 20

SPLITS = ("valid", "test", "train")
"""Smallest first: files of earlier splits are remembered, and looked for in later ones."""


class Findings:
    """Print problems as they are found: the first 20 of each kind, and a count of the others."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()

    def warn(self, line: str) -> None:
        """Print a remark that is no problem."""
        tqdm.write(f"warning: {one_line(line)}", file=sys.stderr)

    def add(self, kind: str, line: str) -> None:
        """Count a problem and print `line`."""
        self._kinds[kind] += 1
        if self._kinds[kind] <= _MAX_LINES:
            tqdm.write(one_line(line))

    @contextlib.contextmanager
    def catching(self, kind: str) -> Iterator[None]:
        """Add the InputError that the block raises, if any."""
        try:
            yield
        except InputError as error:
            self.add(kind, str(error))

    def __len__(self) -> int:
        return self._kinds.total()

    def finish(self) -> None:
        """Print how many problems there are, and how many were not printed."""
        for kind, count in self._kinds.items():
            if count > _MAX_LINES:
                print(f"... and {count - _MAX_LINES} more: {kind}")
        print(f"{counted(len(self), 'problem')} found")


def get_parser() -> Parser:
    parser = Parser(
        prog="python -m manifests_tools check",
        description="Check the manifests of a folder: every file exists, can be decoded, is as "
        "long as stated, and is in one split; the labels have one line per track, as many labels "
        "as its length needs, and no unit that the dict lacks. The labels of a probing task's "
        "folder are checked as well. Prints one line per problem, and exits with status 1 if there "
        "is one.",
        epilog="example: python -m manifests_tools check manifests",
    )
    add = parser.option
    add(
        "manifests DIR",
        "folder with train.tsv and valid.tsv, perhaps test.tsv",
        default="manifests",
        nargs="?",
    )
    add(
        "--labels DIR",
        "folder with one .km per split and dict.km.txt (default: `labels` beside DIR, if "
        "its metadata.json names these manifests)",
    )
    add(
        "--label-rate HZ",
        "labels per second (default: from metadata.json in the labels' folder)",
        type=float,
    )
    add_reading_options(parser)
    return parser


def run(a: argparse.Namespace) -> int:
    """Print one line per problem and return 1, or that all is well and return 0.

    Raises InputError if there is no such folder, or the labels' rate is unknown.
    """
    folder = Path(a.manifests)
    if not folder.is_dir():
        right = with_path(folder, folder.parent) if folder.is_file() else ""
        raise InputError(f"{folder}: no such folder; give the one that holds train.tsv", right)
    its_labels = _find_labels(folder, a.labels, a.label_rate)
    findings = Findings()
    splits = _open_manifests(folder, findings)
    is_task = (folder / TASK_FILE).exists()
    _check_audio(splits, a.thorough, a.workers, findings, is_task)
    if a.thorough:
        _check_copies(splits, findings, is_task)
    totals = dict.fromkeys(splits, "")
    if its_labels is not None:
        totals = _check_labels(splits, *its_labels, findings)
    if is_task:
        _check_probing(folder, list(splits), findings)
    if "valid" in splits and not is_task:
        for sentence in concerns(splits["valid"]):
            warn(sentence)
    if findings:
        findings.finish()
        return 1
    for split, manifest in reversed(splits.items()):
        duration = amount(hours(manifest.num_samples))
        print(f"{split}: {counted(len(manifest), 'track')}, {duration}{totals[split]}: all well")
    return 0


def _find_labels(folder: Path, labels: str | None, rate: float | None) -> tuple[Path, float] | None:
    """Return the folder of the labels, and their rate per second; None for no labels."""
    if labels is None:
        beside = [labels_beside(folder), Path(os.path.normpath(folder / ".." / "labels"))]
        there = [where for where in beside if where.is_dir()]
        # With a rate given they are meant; else they may be of other music.
        related = [where for where in there if rate is not None or _made_from(where, folder)]
        if not related:
            for where in dict.fromkeys(there):
                print(
                    f"{where}: not checked, because its metadata.json does not say that it was "
                    f"made from {folder}; --labels {shlex.quote(str(where))} checks it",
                    file=sys.stderr,
                )
            return None
        where = related[0]
    else:
        where = Path(labels)
    if not where.is_dir():
        raise InputError(f"{where}: no such folder; --labels takes the one that holds train.km")
    if rate is None:
        rate = read_label_rate(where)
    if rate is None:
        raise InputError(
            f"{where}: no metadata.json that tells the label rate; "
            "give it: --label-rate 100 for MFCC labels, 50 for those of deep features"
        )
    label_hop(rate)
    return where, rate


def _made_from(labels: Path, manifests: Path) -> bool:
    """Tell whether the labels' metadata name these manifests, by contents or by path."""
    try:
        splits = read_metadata(labels).get("splits", {})
    except InputError:
        return True  # the check reports it
    for split, record in splits.items():
        file = manifests / f"{split}.tsv"
        # A relative path is relative to the folder that labels/ is in, unless --labels was given.
        if Path(labels.parent, record["manifest"]).resolve() == file.resolve():
            return True
        if file.is_file() and record["manifest_sha256"] == checksum(file):
            return True
    return False


def _open_manifests(folder: Path, findings: Findings) -> dict[str, Manifest]:
    manifests = {}
    if not any((folder / f"{split}.tsv").exists() for split in SPLITS):
        raise missing_manifest(folder / "train.tsv")
    for split in SPLITS:
        file = folder / f"{split}.tsv"
        if split == "test" and not file.exists():
            continue
        with findings.catching("manifest"):
            manifests[split] = Manifest(file)
    return manifests


def _check_audio(
    splits: dict[str, Manifest], thorough: bool, workers: int, findings: Findings, is_task: bool
) -> None:
    seen: dict[FileId, str] = {}
    for split, manifest in splits.items():
        if "://" not in manifest.root and not os.path.isdir(manifest.root):
            findings.add(
                "root",
                f"{manifest.file}: its root {manifest.root} does not exist; was the music moved? "
                "Make the manifests again, or correct the first line",
            )
            continue
        tracks = [(manifest.name(i), int(n)) for i, n in enumerate(manifest.num_samples)]
        function = partial(_check_track, root=manifest.root, thorough=thorough)
        results = parallel_map(function, tracks, workers, f"reading {split}")
        here: dict[FileId, str] = {}
        for (name, _), (reason, identity) in zip(tracks, results, strict=True):
            if reason == SILENT and is_task:
                # A task's data set chooses its files, not the user.
                findings.warn(f"{split}: {name}: {reason}")
            elif reason is not None:
                findings.add(f"{split}, {kind_of(reason)}", f"{split}: {name}: {reason}")
            if identity in seen:
                findings.add("in two splits", f"{split}: {name}: also in {seen[identity]}")
            elif identity is not None and split != SPLITS[-1]:
                here[identity] = split
        seen |= here


def _check_copies(splits: dict[str, Manifest], findings: Findings, is_task: bool) -> None:
    """Report files of equal bytes: a problem in two splits, a remark within one."""
    paths = {s: [m.path(i) for i in range(len(m))] for s, m in splits.items()}
    for split, of_split in paths.items():
        within = find_copies(of_split)
        if within:
            findings.warn(f"{split}: {len(within)} files are copies of others in it")
    for first, second in combinations(paths, 2):
        for path, twin in find_copies(paths[second], paths[first]).items():
            if not os.path.samefile(path, twin):
                line = f"{second}: {path}: {COPY} in {first}: {twin}"
                if is_task:
                    findings.warn(line)
                else:
                    findings.add(f"{second}, {COPY}", line)


def _check_track(
    track: tuple[str, int], root: str, thorough: bool
) -> tuple[str | None, FileId | None]:
    """Return what is wrong with a track, or None, and the identity of its file, if it exists."""
    name, stated = track
    path = os.path.join(root, name)
    identity = None
    try:
        if audio.parse_member(path) is None:  # files within shards are no links to others
            identity = identify(os.stat(path))
        info, silent = examine(path, thorough)
    except AudioError as error:
        return error.reason, identity
    except OSError as error:
        return f"cannot be opened: {error.strerror}", None
    length = info.length_at()
    if abs(length - stated) <= 1:
        return SILENT if silent else None, identity
    reason = f"wrong length: {stated} samples stated, at {SAMPLE_RATE} Hz it has {length}"
    if stated == info.num_samples:
        reason += f" (stated at its own rate, {info.sample_rate} Hz: make the manifest again)"
    return reason, identity


def _check_labels(
    splits: dict[str, Manifest], folder: Path, rate: float, findings: Findings
) -> dict[str, str]:
    """Check the labels of all splits; return the number of labels per split, in words."""
    totals: dict[str, str] = {}
    with findings.catching("dict"):
        units = UnitDictionary(folder / "dict.km.txt")
        for split, manifest in splits.items():
            with findings.catching("labels"):
                store = LabelStore(folder / f"{split}.km")
                totals[split] = f", {store.counts.sum()} labels"
                with findings.catching("labels"):
                    check_labels(manifest, store, units, rate, whole=True)
                if len(store) != len(manifest):
                    continue
                # Each track: `check_labels` names one, and samples large files.
                bar = tqdm(manifest.num_samples, f"labels of {split}", unit=" tracks")
                for i, num_samples in enumerate(bar):
                    count, track = int(store.counts[i]), f"{split}: {manifest.name(i)}"
                    if not labels_fit(count, int(num_samples), label_hop(rate)):
                        findings.add(
                            f"{split}, labels of another length",
                            f"{track}: {count} labels, {count / rate:.2f} s at {rate:g} Hz, but "
                            f"{num_samples / SAMPLE_RATE:.2f} s of audio",
                        )
                    found = store.units(i)
                    outside = units.outside(found)
                    if outside.any():
                        findings.add(
                            f"{split}, units not in the dict",
                            f"{track}: {outside.sum()} of its {count} labels are not in "
                            f"{units.file}, the first is {found[outside.argmax()]}",
                        )
    return totals


def _check_probing(folder: Path, splits: list[str], findings: Findings) -> None:
    """Read a probing task's labels of all splits; report wrong ones and songs in two splits."""
    with findings.catching("probing labels"):
        check_leakage(folder)
    with findings.catching("task"):
        task = read_spec(folder)
        for split in splits:
            with findings.catching("probing labels"):
                ProbingSplit(folder, split, task)
