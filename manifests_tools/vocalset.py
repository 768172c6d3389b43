"""VocalSet: `vocalset-singer` and `vocalset-technique`, in chunks of three seconds.

The benchmark's split (`marble`) keeps a recording on one side, but for technique its validation
singers also train, so validation looks better than test; and for singer, the same exercise is sung
on both sides. `disjoint` also keeps the singers, or the exercises, apart.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import ceil
from operator import attrgetter

from manifests_tools.examine import ExaminedTrack
from manifests_tools.find import SAME, find_audio
from manifests_tools.labelled import DataSet, Labelled
from manifests_tools.probing import ProbingBuilder
from music_ssl_fairseq.errors import InputError, one_line
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.probing.spec import ProbingSpec
from music_ssl_fairseq.probing.writer import Example

SINGERS = tuple(
    sorted([*(f"female{i}" for i in range(1, 10)), *(f"male{i}" for i in range(1, 12))])
)
TECHNIQUES = (
    "belt", "breathy", "inhaled", "lip_trill", "spoken", "straight", "trill", "trillo", "vibrato",
    "vocal_fry",
)  # fmt: skip
CONTEXTS = ("arpeggios", "excerpts", "long_tones", "scales")
TEST_SINGERS = ("female2", "female8", "male3", "male5", "male10")
VALID_SINGERS = ("female4", "female9", "male4", "male9")
"""Validation singers of the technique's `disjoint` split."""

DOUBLE = (
    "f2_scales_vibrato_a(1).wav", "caro_vibrato.wav", "dona_vibrato.wav", "row_vibrato.wav",
    "slow_vibrato_arps.wav",
)  # fmt: skip
"""Recordings that are in the archive twice, or missing in its table."""

CHUNK_SECONDS = 3

_SEED = 42617
_SOURCE = "VocalSet (https://zenodo.org/records/1193957)"


@dataclass(frozen=True)
class Recording:
    """A file, and the names of its folders."""

    name: str
    singer: str
    context: str
    technique: str

    @property
    def exercise(self) -> tuple[str, str]:
        return self.context, self.technique


def read(root: str, label: str, split: str = "marble") -> DataSet:
    """Read the labels of `vocalset-LABEL`; see `ProbingBuilder`."""
    recordings, skipped = _find_recordings(root)
    if label == "singer":
        by = "exercise" if split == "disjoint" else "name"
        rest, test = _shuffle(recordings, by, 0.2)
        train, valid = _shuffle(rest, by, 0.4)
        classes = SINGERS
    else:
        recordings = [item for item in recordings if item.technique in TECHNIQUES]
        test = [item for item in recordings if item.singer in TEST_SINGERS]
        rest = [item for item in recordings if item.singer not in TEST_SINGERS]
        train, valid = _shuffle(rest, "name", 0.4)
        if split == "disjoint":
            train = [item for item in rest if item.singer not in VALID_SINGERS]
            valid = [item for item in rest if item.singer in VALID_SINGERS]
        classes = TECHNIQUES
    splits = {
        side: [Labelled(item.name, (getattr(item, label),)) for item in items]
        for side, items in (("train", train), ("valid", valid), ("test", test))
    }
    task = ProbingSpec(
        f"vocalset-{label}",
        "multi-class",
        "accuracy",
        classes,
        counted="chunks",
        skipped=tuple(skipped),
        source=f"{_SOURCE}; split {split}",
    )
    return DataSet(task, splits, chunks)


def _find_recordings(root: str) -> tuple[list[Recording], list[str]]:
    recordings, skipped = [], []
    names, left_out = find_audio(root)
    for item in left_out:
        hidden = os.path.basename(item.name).startswith(".")
        if not hidden and not item.reason.startswith(SAME):
            raise InputError(
                f"{os.path.join(root, one_line(item.name))}: {item.reason}; the splits are drawn "
                "from all recordings"
            )
    for name in names:
        # Names of files are not reliable: some lack the singer, or state another.
        singer, context, technique, file = ["", "", "", *name.split(os.sep)][-4:]
        if singer in SINGERS and context in CONTEXTS:
            if f"{os.path.splitext(file)[0]}.wav" in DOUBLE:  # copies may be FLAC
                skipped.append(name)
            else:
                recordings.append(Recording(name, singer, context, technique))
    if not recordings:
        raise InputError(
            f"{root}: no audio in folders such as female1/arpeggios/belt; --root takes the folder "
            f"that holds FULL/, of {_SOURCE}"
        )
    return recordings, skipped


def _shuffle(
    recordings: Sequence[Recording], attribute: str, share: float
) -> tuple[list[Recording], list[Recording]]:
    """Hold out a share (rounded up) of the groups, chosen by a fixed seed."""
    import numpy as np

    by = attrgetter(attribute)
    groups = sorted({by(item) for item in recordings}, key=repr)
    order = np.random.default_rng(_SEED).permutation(len(groups))
    held_out = {groups[i] for i in order[: ceil(share * len(groups))]}
    kept = [item for item in recordings if by(item) not in held_out]
    return kept, [item for item in recordings if by(item) in held_out]


def chunks(item: Labelled, track: ExaminedTrack) -> list[Example]:
    """Return consecutive chunks of a recording; a shorter rest is left out."""
    edges = range(0, track.num_samples // SAMPLE_RATE + 1, CHUNK_SECONDS)
    return [
        Example(item.name, track.num_samples, item.label, segment, item.name)
        for segment in pairwise(edges)
    ]


def _builder(label: str, what: str, disjoint: str) -> ProbingBuilder:
    about = f"marble: as in the benchmark, a recording is in one split; disjoint: {disjoint}"
    choices = {"choices": ("marble", "disjoint"), "default": "marble"}
    return ProbingBuilder(
        f"vocalset-{label}",
        f"{what} in chunks of three seconds; scores are per chunk and per recording. "
        f"Source: {_SOURCE}.",
        "folder that holds FULL/, or female1/ to male11/ with context/technique/*.wav",
        partial(read, label=label),
        {"--split": {**choices, "help": about}},
    )


singer = _builder(
    "singer", "Which of 20 singers sings", "an exercise (context and technique) is, too"
)
technique = _builder(
    "technique", "Which of ten vocal techniques is used", "so is a singer, in all three splits"
)
