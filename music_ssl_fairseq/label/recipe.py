"""What made a set of labels, and the folder they are in.

`metadata.json` holds the recipe, the fit and a record of each finished split. Files are written in
an order in which a run that dies at any moment can be taken up: a fit counts only once centroids
are there whose checksum is the recorded one, a split only once it is recorded.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features import FrontEnd
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.jobs.checkpoint_dir import CheckpointDir
from music_ssl_fairseq.label.given import load_centroids
from music_ssl_fairseq.label.join import Joined
from music_ssl_fairseq.label.kmeans import Fit
from music_ssl_fairseq.runtime.files import atomic_path, checksum, remove_temporary
from music_ssl_fairseq.runtime.texts import read_object

SPLITS = ("train", "valid")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides the centroids. Labels of equal recipes are equal.

    Attributes:
        train_manifest: SHA-256 of the manifest that frames are sampled from.
        checkpoint: fingerprint of the model of deep features.
        layer: of that model.
        max_frames: frames fitted on at most.
        iterations: of K-means, at most.
        init: see `start.start_centroids`.
        restarts: starts to choose from.
        minibatch: frames held at once, None for all.
        given_centroids: SHA-256 of the file that centroids were taken from, if they were not
            fitted.
    """

    features: str
    k: int
    seed: int
    iterations: int
    max_frames: int
    train_manifest: str
    checkpoint: str | None = None
    layer: int | None = None
    init: str = "kmeans++"
    restarts: int = 1
    minibatch: int | None = None
    given_centroids: str | None = None

    def differences(self, metadata: dict[str, Any]) -> str:
        """In words, what another run's metadata have otherwise: empty if nothing."""
        words = []
        for name, value in dataclasses.asdict(self).items():
            if metadata.get(name) == value:
                continue
            if name in _IN_WORDS:
                words.append(f"another {_IN_WORDS[name]}")
            else:
                words.append(f"{name.replace('_', '-')} {metadata.get(name)} instead of {value}")
        return ", ".join(words)

    @property
    def identity(self) -> str:
        """Twelve digits that tell recipes apart, and versions of this package, which may cut work
        in other blocks."""
        both = f"{self} {_version('music_ssl_fairseq')}"
        return hashlib.sha256(both.encode()).hexdigest()[:12]


_IN_WORDS = {
    "train_manifest": "train manifest",
    "checkpoint": "checkpoint",
    "given_centroids": "file of centroids, or none",
}


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 of a manifest: its root, names, lengths and their order."""
    return checksum(manifest.file)


class LabelFolder:
    """`labels/`: what is there of a recipe, and what is written next.

    Args:
        path: see `make`.
        force: forget what is there. It is removed only when there are new centroids.
        remarks: what else to note in the metadata.

    Attributes:
        work: what is done of what is not finished.

    Raises:
        InputError: if labels are there that this recipe did not make, unless `force`.
    """

    def __init__(
        self, path: Path, recipe: Recipe, force: bool, remarks: dict[str, str] | None = None
    ):
        self.path = path
        self.recipe = recipe
        self._remarks = remarks or {}
        self.work = CheckpointDir(path / f".work-{recipe.identity}")
        self._overwrite = force
        self.metadata: dict[str, Any] = {}
        if force:
            self.work.remove()
        self.reload()

    def reload(self) -> None:
        """See what other processes of this run have finished."""
        if not self._overwrite:
            self.metadata = self._read()

    def _read(self) -> dict[str, Any]:
        file = self.path / "metadata.json"
        way_out = "--labels writes elsewhere; --force would replace them"
        if not file.exists():
            if found := self._outputs():
                raise InputError(f"{found[0]}: there already, without {file.name}; {way_out}")
            return {}
        metadata = read_object(file, way_out)
        if not _is_noted(metadata):
            raise InputError(f"{file}: damaged, or not written by the labeler; {way_out}")
        if different := self.recipe.differences(metadata):
            raise InputError(f"{self.path}: holds labels made with {different}; {way_out}")
        return metadata

    def _outputs(self) -> list[Path]:
        of_split = (f"{split}.{kind}" for split in SPLITS for kind in _KINDS)
        names = [*of_split, "dict.km.txt", "centroids.npy"]
        return [self.path / name for name in names if (self.path / name).exists()]

    def make(self) -> None:
        """Make the folder, so that one that cannot be written is found before any work is done."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK):
            raise InputError(f"{self.path}: not writable; give --labels another folder")

    def centroids(self) -> np.ndarray | None:
        """`[k, D]` of an earlier run of this recipe, if there are any."""
        file = self.path / "centroids.npy"
        if not self.metadata or not file.exists():
            return None
        if checksum(file) != self.metadata["centroids_sha256"]:
            if self.metadata["splits"]:
                raise InputError(f"{file}: changed since labels were made with it; give --force")
            return None
        return load_centroids(file)

    def save_fit(self, fit: Fit, num_frames: int, front_end: FrontEnd, fitted_by: str) -> None:
        """Write the centroids and what goes with them; remove labels made with others.

        Args:
            num_frames: fitted on.
            fitted_by: the library, with its version.
        """
        for outdated in self._outputs():
            outdated.unlink()
        for recipe in self.path.glob(".work-*"):
            if recipe != self.work.path:
                CheckpointDir(recipe).remove()
        remove_temporary(self.path)  # the caller holds the lock of this folder
        with atomic_path(self.path / "centroids.npy") as centroids:
            np.save(centroids, fit.centroids)
            self.metadata = {
                **dataclasses.asdict(self.recipe),
                **self._remarks,
                **_describe_frames(front_end),
                **_describe_fit(fit, num_frames, fitted_by),
                "centroids_sha256": checksum(centroids),
                "versions": _versions(),
                "splits": {},
            }
            self._write_metadata()
            self.write_dictionary()
        self._overwrite = False

    def write_dictionary(self) -> None:
        """Write `dict.km.txt`, unless it is there as it should be."""
        file = self.path / "dict.km.txt"
        text = "".join(f"{unit} 1\n" for unit in range(self.recipe.k)).encode()
        if not file.is_file() or file.read_bytes() != text:
            with atomic_path(file) as dictionary:
                dictionary.write_bytes(text)

    def _write_metadata(self) -> None:
        with atomic_path(self.path / "metadata.json") as temporary:
            temporary.write_text(json.dumps(self.metadata, indent=2) + "\n", encoding="utf-8")

    def target(self, split: str) -> Path:
        """Where a split's labels are once all are there."""
        return self.path / f"{split}.km"

    def stage_name(self, split: str, manifest: Manifest) -> str:
        """What a split's blocks are called: otherwise for each manifest and centroids."""
        both = fingerprint(manifest) + self.metadata["centroids_sha256"]
        return f"{split}-{hashlib.sha256(both.encode()).hexdigest()[:8]}"

    def is_finished(self, split: str, manifest: Manifest) -> bool:
        """Whether a split is labelled, and its files are as they were written.

        Raises:
            InputError: if it is, but its manifest has changed since.
        """
        record = self.metadata.get("splits", {}).get(split)
        if record is None or not self.target(split).exists():
            return False
        if record["manifest_sha256"] != fingerprint(manifest):
            raise InputError(
                f"{manifest.file}: changed since {self.target(split)} was made from it; "
                "give --force to label again"
            )
        # Older labels have no checksums.
        for name, noted in record.get("sha256", {}).items():
            file = self.path / name
            if not file.is_file() or checksum(file) != noted:
                print(
                    f"{file}: missing, damaged or changed since it was made; {split} is labelled "
                    "again, with the same centroids",
                    file=sys.stderr,
                )
                return False
        return True

    def finish(self, split: str, manifest: Manifest, joined: Joined, silent: Sequence[int]) -> None:
        """Record that a split's labels are all there; `silent` are its silent tracks."""
        self.metadata["splits"][split] = {
            "manifest": str(manifest.file),
            "manifest_sha256": fingerprint(manifest),
            **joined.usage.summary(),
            "unreadable": joined.unreadable,
            "silent": list(silent),
            "sha256": {
                name: checksum(self.path / name) for name in (f"{split}.{kind}" for kind in _KINDS)
            },
        }
        # Not in the order in which shards happen to finish them.
        self.metadata["splits"] = dict(sorted(self.metadata["splits"].items()))
        self._write_metadata()
        remove_temporary(self.path)


_KINDS = ("km", "units.npy", "offsets.npy")


def _is_noted(metadata: dict[str, Any]) -> bool:
    """Whether what the stages need is there."""
    return (
        isinstance(metadata.get("centroids_sha256"), str)
        and isinstance(metadata.get("label_rate"), int | float)
        and isinstance(metadata.get("splits"), dict)
        and all(map(_is_record, metadata["splits"].values()))
    )


def _is_record(split: Any) -> bool:
    """Whether it is what `LabelFolder.finish` notes of a split."""
    return isinstance(split, dict) and isinstance(split.get("manifest_sha256"), str)


def _describe_frames(front_end: FrontEnd) -> dict[str, Any]:
    return {
        "label_rate": front_end.frame_rate,
        "sample_rate": SAMPLE_RATE,
        "frame_window": front_end.grid.window,
        "frame_hop": front_end.grid.hop,
        "dimension": front_end.dimension,
    }


def _describe_fit(fit: Fit, num_frames: int, fitted_by: str) -> dict[str, Any]:
    # Six digits: a sum's last ones may depend on the number of threads.
    curve = [float(f"{inertia:.6g}") for inertia in fit.curve]
    return {
        "frames_fitted": num_frames,
        "fitted_by": fitted_by,
        "train_inertia": curve[-1] if curve else None,
        "inertia_curve": curve,
        "coarse_inertia_curve": [float(f"{inertia:.6g}") for inertia in fit.coarse],
    }


def _versions() -> dict[str, str]:
    from music_ssl_fairseq.label.backends import import_faiss

    distributions = ("music_ssl_fairseq", "numpy", "scipy", "soundfile", "av")
    return {
        "python": platform.python_version(),
        "faiss": import_faiss().__version__,
        **{distribution: _version(distribution) for distribution in distributions},
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"
