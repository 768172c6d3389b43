"""The folder of a set of labels.

`metadata.json` holds the recipe, the fit and a record of each finished split. Files are written in
an order in which a run that dies at any moment can resume: a fit counts only once centroids exist
whose checksum is the recorded one, a split only once it is recorded.
"""

import hashlib
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.data.audio_identity import audio_identity, note_names
from music_ssl_fairseq.data.label_metadata import changed_files
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features import FrontEnd
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.jobs.checkpoint_dir import CheckpointDir
from music_ssl_fairseq.label.external_centroids import load_centroids
from music_ssl_fairseq.label.join import Joined
from music_ssl_fairseq.label.kmeans import KMeansState, import_faiss
from music_ssl_fairseq.label.recipe import WORDS, Recipe, version
from music_ssl_fairseq.runtime.files import (
    atomic_path,
    checksum,
    remove_temporary,
    require_writable,
    write_json,
)
from music_ssl_fairseq.runtime.metadata import METADATA, matching_metadata
from music_ssl_fairseq.runtime.user_command import with_flag, with_option

SPLITS = ("train", "valid")

_WAY_OUT = "--labels writes elsewhere; --force would replace them"
_FORMATS = ("km", "units.npy", "offsets.npy")


class LabelFolder:
    """The folder of labels: a recipe's results so far, and the files to write.

    With `force`, what exists is disregarded, and removed only when there are new centroids.
    `remarks` are recorded in the metadata. `checkpoint_dir` has the blocks of what is not finished.

    Raises InputError if labels exist that this recipe did not make, unless `force`.
    """

    def __init__(
        self, path: Path, recipe: Recipe, force: bool, remarks: dict[str, str] | None = None
    ):
        self.path = path
        self.recipe = recipe
        self._remarks = remarks or {}
        self.checkpoint_dir = CheckpointDir(path / f".work-{recipe.identity}")
        self._overwrite = force
        self.metadata: dict[str, Any] = {}
        if force:
            self.checkpoint_dir.remove()
        self.reload()

    def reload(self) -> None:
        """Read what other processes of this run have finished."""
        if self._overwrite:
            return
        self.metadata = matching_metadata(
            self.path,
            self.recipe.settings,
            results="labels",
            outputs=self._outputs(),
            way_out=_WAY_OUT,
            words=WORDS,
            is_complete=_is_complete,
            command=with_option("--labels", f"{self.path}-k{self.recipe.settings['k']}"),
        )

    def _outputs(self) -> list[Path]:
        of_split = (f"{split}.{suffix}" for split in SPLITS for suffix in _FORMATS)
        names = [*of_split, "dict.km.txt", "centroids.npy"]
        return [self.path / name for name in names if (self.path / name).exists()]

    def make(self) -> None:
        """Make the folder, so that a folder that cannot be written is an error before any work."""
        require_writable(self.path, "--labels")
        self.path.mkdir(parents=True, exist_ok=True)

    def centroids(self) -> np.ndarray | None:
        """Return `[k, D]` of an earlier run of this recipe, if there are any."""
        file = self.path / "centroids.npy"
        if not self.metadata or not file.exists():
            return None
        if checksum(file) != self.metadata["centroids_sha256"]:
            if self.metadata["splits"]:
                raise InputError(
                    f"{file}: changed since labels were made with it; give --force",
                    with_flag("--force"),
                )
            return None
        return load_centroids(file)

    def save_fit(
        self,
        fit: KMeansState,
        num_frames: int,
        front_end: FrontEnd,
        fitted_by: str,
        audio: str | None = None,
    ) -> None:
        """Write the centroids and what describes them; remove labels made with others.

        Args:
            num_frames: number of frames that were fitted on.
            front_end: what computed them.
            fitted_by: the library that fitted, with its version.
            audio: `audio_identity` of the train manifest.
        """
        for outdated in self._outputs():
            outdated.unlink()
        for unfinished in self.path.glob(".work-*"):
            if unfinished != self.checkpoint_dir.path:
                CheckpointDir(unfinished).remove()
        remove_temporary(self.path)  # the caller holds the lock of this folder
        # Six digits: a sum's last ones may depend on the number of threads.
        curve, coarse = ([float(f"{x:.6g}") for x in part] for part in (fit.curve, fit.coarse))
        distributions = ("music_ssl_fairseq", "numpy", "scipy", "soundfile", "av")
        with atomic_path(self.path / "centroids.npy") as centroids:
            np.save(centroids, fit.centroids)
            self.metadata = {
                **self.recipe.settings,
                **self._remarks,
                "label_rate": front_end.grid.rate,
                "sample_rate": SAMPLE_RATE,
                "frame_window": front_end.grid.window,
                "frame_hop": front_end.grid.hop,
                "dimension": front_end.dimension,
                "frames_fitted": num_frames,
                "fitted_by": fitted_by,
                "train_inertia": curve[-1] if curve else None,
                "inertia_curve": curve,
                "coarse_inertia_curve": coarse,
                "audio": audio,
                "centroids_sha256": checksum(centroids),
                "versions": {
                    "python": platform.python_version(),
                    "faiss": import_faiss().__version__,
                    **{distribution: version(distribution) for distribution in distributions},
                },
                "splits": {},
            }
            write_json(self.path / METADATA, self.metadata)
            self.write_dictionary()
        self._overwrite = False

    def write_dictionary(self) -> None:
        """Write `dict.km.txt`, unless it exists as it should be."""
        file = self.path / "dict.km.txt"
        text = "".join(f"{unit} 1\n" for unit in range(self.recipe.k)).encode()
        if not file.is_file() or file.read_bytes() != text:
            with atomic_path(file) as dictionary:
                dictionary.write_bytes(text)

    def target(self, split: str) -> Path:
        """Return the file of a split's labels, which exists once they are complete."""
        return self.path / f"{split}.km"

    def block_name(self, split: str, manifest: Manifest) -> str:
        """Return the name of a split's blocks, which differs by manifest and centroids."""
        both = checksum(manifest.file) + self.metadata["centroids_sha256"]
        return f"{split}-{hashlib.sha256(both.encode()).hexdigest()[:8]}"

    def is_finished(self, split: str, manifest: Manifest) -> bool:
        """Return whether a split is labelled, and its files are as they were written.

        Raises InputError if it is, but its manifest has changed since.
        """
        record = self.metadata.get("splits", {}).get(split)
        if record is None or not self.target(split).exists():
            return False
        if record["manifest_sha256"] != checksum(manifest.file):
            raise InputError(
                f"{manifest.file}: changed since {self.target(split)} was made from it; "
                "give --force to label again",
                with_flag("--force"),
            )
        for file in changed_files(self.path, record):
            print(
                f"{file}: missing, damaged or changed since it was made; {split} is labelled "
                "again, with the same centroids",
                file=sys.stderr,
            )
            return False
        return True

    def finish(self, split: str, manifest: Manifest, joined: Joined, silent: Sequence[int]) -> None:
        """Record that a split's labels are complete; `silent` are its silent tracks."""
        self.metadata["splits"][split] = {
            "manifest": str(manifest.file),
            "manifest_sha256": checksum(manifest.file),
            "audio": audio_identity(manifest),
            "names": note_names(manifest.name, len(manifest)),
            **joined.summary(),
            "unreadable": joined.unreadable,
            "silent": list(silent),
            "sha256": {
                name: checksum(self.path / name)
                for name in (f"{split}.{suffix}" for suffix in _FORMATS)
            },
        }
        # Not in the order in which shards happen to finish them.
        self.metadata["splits"] = dict(sorted(self.metadata["splits"].items()))
        write_json(self.path / METADATA, self.metadata)
        remove_temporary(self.path)


def _is_complete(metadata: dict[str, Any]) -> bool:
    splits = metadata.get("splits")
    return (
        isinstance(metadata.get("centroids_sha256"), str)
        and isinstance(metadata.get("label_rate"), int | float)
        and isinstance(splits, dict)
        and all(
            isinstance(split, dict) and isinstance(split.get("manifest_sha256"), str)
            for split in splits.values()
        )
    )
