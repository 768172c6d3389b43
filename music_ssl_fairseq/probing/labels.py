"""Read and identify the labels of a probing task: plain text beside its manifests.

For each split, `train`, `valid` and `test`, the folder holds
- `{split}.tsv`: the manifest (`manifest`). Rows may repeat a file, with other segments.
- `{split}.labels`: UTF-8, one line per manifest row, of cells separated by tabs. By kind:
  - multi-class and key: one class.
  - multi-label: any number of classes.
  - regression: numbers in the order of the task's targets.
  - beats: seconds, ascending, optionally with the position in the bar (`1.25/1` is a downbeat).
- optionally `{split}.segments`: `start<TAB>stop` in seconds, the annotated part of the file.
- optionally `{split}.groups`: the name of the song that the row is a part of. Metrics per group
  average over a song.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from music_ssl_fairseq.data.audio_identity import AUDIO, audio_identity
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.run_identity import Identity, contents_of, digest_of, manifest_identity
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import LENGTH_TOLERANCE, SAMPLE_RATE, samples_in
from music_ssl_fairseq.probing.spec import (
    ProbingSpec,
    builder_command,
    parse_number,
    parse_position,
)
from music_ssl_fairseq.runtime.texts import quoted, read_text

_MAX_BYTES = 1 << 30  # of a file of labels; 300,000 lines have some megabytes
_MAX_COMPARED_FILES = 1000  # of a split whose audio is compared


@dataclass(frozen=True)
class Beats:
    """Beats of a file."""

    times: np.ndarray  # `[beats]` float64, seconds, ascending
    # `[beats]` int64 position in the bar from 1 (a downbeat); 0 where not stated
    positions: np.ndarray


class ProbingSplit:
    """One split of a task, read and checked. N is the number of manifest rows.

    Attributes:
        spec: contents of `task.json`.
        manifest: files and their lengths.
        targets: multi-class and key: `[N]` int64 index of the class; multi-label: `[N, classes]`
            bool; regression: `[N, targets]` float64, not normalised; beats: `[N, 0]`.
        beats: for the kind beats, N `Beats`; otherwise empty.
        segments: `[N, 2]` int64, start and stop in samples at 16 kHz.
        groups: name of each row's song; without `.groups`, of its file.
        group_index: `[N]` int64 number of the song, in the order of their first rows.
    """

    def __init__(self, folder: str | os.PathLike, split: str, spec: ProbingSpec):
        """Read a split.

        Raises InputError, which names file and line, if labels are missing, too many, unknown or no
        numbers, or if a segment or a beat is not within its file. It is raised as well for a split
        that cannot be scored: a song has two classes, a target one value, all files the same
        labels, or no segment a beat.
        """
        self.spec = spec
        self.manifest = Manifest(Path(folder, f"{split}.tsv"))
        self.labels_file = Path(folder, f"{split}.labels")
        lines = read_cells(self.labels_file, self.manifest)
        self.beats: list[Beats] = []
        self.targets = np.zeros((len(lines), 0), np.float64)
        if spec.of_kind.has_beats:
            self.beats = [self._beats(i, cells) for i, cells in enumerate(lines)]
        elif spec.of_kind.has_numbers:
            self.targets = np.array([self._numbers(i, cells) for i, cells in enumerate(lines)])
        else:
            self.targets = self._classes(lines)
        self.segments = self._read_segments(Path(folder, f"{split}.segments"))
        self.groups = [self.manifest.name(i) for i in range(len(self.manifest))]
        if (groups := Path(folder, f"{split}.groups")).exists():
            self.groups = ["\t".join(cells) for cells in read_cells(groups, self.manifest)]
        order = {group: i for i, group in enumerate(dict.fromkeys(self.groups))}
        self.group_index = np.array([order[group] for group in self.groups], np.int64)
        self._refuse_unscorable()

    def __len__(self) -> int:
        return len(self.manifest)

    def _refuse_unscorable(self) -> None:
        if self.spec.of_kind.one_class:
            first = np.unique(self.group_index, return_index=True)[1]
            differ = np.flatnonzero(self.targets != self.targets[first][self.group_index])
            if len(differ):
                raise self._error(
                    int(differ[0]), "another label than other parts of its song (.groups)"
                )
        elif self.spec.of_kind.has_numbers:
            for name, values in zip(self.spec.targets, self.targets.T, strict=True):
                if (values == values[0]).all():
                    raise InputError(
                        f"{self.labels_file}: {name} is {values[0]:g} in all {len(self)} lines, so "
                        "R2 is not defined: a split needs files with other values"
                    )
        elif self.spec.of_kind.has_beats:
            parts = (self.segments / SAMPLE_RATE).tolist()
            pairs = zip(self.beats, parts, strict=True)
            if not any(((a <= beats.times) & (beats.times < b)).any() for beats, (a, b) in pairs):
                raise InputError(f"{self.labels_file}: not one beat is within its segment")
        elif (self.targets == self.targets[0]).all():
            raise InputError(
                f"{self.labels_file}: all {len(self)} lines have the same labels, so there is "
                "nothing to tell apart: a split needs files with others"
            )

    def _classes(self, lines: list[list[str]]) -> np.ndarray:
        one, index = self.spec.of_kind.one_class, {c: i for i, c in enumerate(self.spec.classes)}
        found = np.zeros((len(lines), len(index)), bool)
        for line, cells in enumerate(lines):
            if one and len(cells) != 1:
                count = f"{len(cells)} labels" if cells else "no label"
                raise self._error(line, f"{count}, but the task is {self.spec.kind}: one per line")
            for name in cells:
                if name not in index:
                    raise self._error(
                        line,
                        f"{quoted(name)} is not one of the {len(index)} classes in task.json "
                        f"({', '.join(self.spec.classes[:3])}, ...): correct the label, or make "
                        "both again",
                    )
                found[line, index[name]] = True
        if not found.any():
            raise InputError(f"{self.labels_file}: not one label in {len(lines)} lines")
        return found.argmax(axis=1) if one else found

    def _numbers(self, line: int, cells: list[str]) -> list[float]:
        if len(cells) != len(self.spec.targets):
            raise self._error(
                line, f"{len(cells)} numbers, the targets are {', '.join(self.spec.targets)}"
            )
        try:
            return [parse_number(cell) for cell in cells]
        except ValueError as error:
            raise self._error(line, str(error)) from None

    def _beats(self, line: int, cells: list[str]) -> Beats:
        try:
            parts = [cell.partition("/") for cell in cells]
            times = np.array([parse_number(time) for time, _, _ in parts], np.float64)
            positions = np.array([parse_position(place or "0") for _, _, place in parts], np.int64)
        except ValueError as error:
            raise self._error(
                line, f"not a beat, `seconds` or `seconds/position in the bar` ({error})"
            ) from None
        seconds = self.manifest.num_samples[line] / SAMPLE_RATE
        if not len(times):
            raise self._error(line, "no beat")
        if times[0] < 0 or (np.diff(times) <= 0).any():
            raise self._error(line, "beats are not ascending from 0 on")
        if times[-1] > seconds + LENGTH_TOLERANCE:
            raise self._error(
                line,
                f"a beat at {times[-1]:g}, but the file has {seconds:.2f} s: are these seconds?",
            )
        return Beats(times, positions)

    def _read_segments(self, file: Path) -> np.ndarray:
        segments = np.stack(
            [np.zeros(len(self.manifest), np.int64), self.manifest.num_samples], axis=1
        )
        if not file.exists():
            return segments
        tolerance = samples_in(LENGTH_TOLERANCE)
        for line, cells in enumerate(read_cells(file, self.manifest)):
            try:
                start, stop = (samples_in(parse_number(cell)) for cell in cells)
            except ValueError:
                raise self._error(line, "expected `start<TAB>stop` in seconds", file) from None
            length = int(self.manifest.num_samples[line])
            if not 0 <= start < min(stop, length) or stop > length + tolerance:
                reason = f"{cells} is not within the file, {length / SAMPLE_RATE:.2f} s"
                raise self._error(line, reason, file)
            segments[line] = start, min(stop, length)
        return segments

    def _error(self, line: int, reason: str, file: Path | None = None) -> InputError:
        name = self.manifest.name(line)
        return InputError(f"{file or self.labels_file}, line {line + 1} ({name}): {reason}")


def read_cells(file: Path, manifest: Manifest) -> list[list[str]]:
    """Read the cells of each line; an empty line has none.

    Raises InputError if the file is missing, or its number of lines is not the manifest's.
    """
    again = f"make the folder again with {builder_command(manifest.file.parent)}"
    if not file.exists():
        raise InputError(f"{file}: no such file, so {manifest.file} has no labels; {again}")
    # Groups may be named by files, whose names need not be UTF-8.
    text = read_text(file, again, _MAX_BYTES, errors="surrogateescape")
    lines = text.removesuffix("\n").split("\n") if text else []
    if len(lines) != len(manifest):
        raise InputError(
            f"{file}: {len(lines)} lines, but {manifest.file} lists {len(manifest)} files: {again}"
        )
    return [line.split("\t") if line else [] for line in (line.rstrip("\r") for line in lines)]


def probing_identity(
    folder: str | os.PathLike, spec: ProbingSpec, splits: Sequence[str] = ("train", "valid")
) -> Identity:
    """Identify a task's question (`probing_question`), and audio and labels of these splits."""
    found = probing_question(spec)
    for split in splits:
        manifest = Manifest(Path(folder, f"{split}.tsv"))
        files = [Path(folder, f"{split}.{kind}") for kind in ("labels", "segments", "groups")]
        digest = digest_of(contents_of(*[file for file in files if file.exists()]))
        found |= manifest_identity(manifest) | {f"labels of {split}": f"[{digest}]"}
        if audio := probing_audio(manifest):
            found[f"{AUDIO}{split}"] = f"[{audio}]"
    return found


def probing_audio(manifest: Manifest) -> str | None:
    """Digest a split's audio files; None if one is missing."""
    return audio_identity(manifest, most=_MAX_COMPARED_FILES)


def probing_question(spec: ProbingSpec) -> Identity:
    """Identify a task's question: its name, kind, metric and classes or targets."""
    names = [*spec.classes, *spec.targets]
    digest = digest_of(f"{name}\n".encode() for name in names)
    answers = f"{len(names)} [{digest}]" if names else "beats"
    return {"task": f"{spec.name} ({spec.kind}, {spec.metric})", "classes": answers}
