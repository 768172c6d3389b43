"""Plan single notes: pitch and instrument family."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from songs import FAMILIES

PITCHES = range(36, 84)
NEW_PROGRAMS_EACH = 4
"""Programs of each family whose pitches are only tested."""


@dataclass(frozen=True)
class Note:
    """A single note of an instrument.

    Attributes:
        split: of the instrument task: by soundfont, and validation by note.
        pitch_split: of the pitch task: by program as well; None if it is not in it.
        length: seconds until the key is released.
        peak: of the waveform.
    """

    name: str
    program: int
    pitch: int
    split: str
    pitch_split: str | None
    length: float
    velocity: int
    peak: float

    @property
    def family(self) -> str:
        """Its instrument family."""
        return next(name for name, programs in FAMILIES.items() if self.program in programs)


def new_programs(seed: int) -> set[int]:
    """Return the programs whose pitches are only tested."""
    rng = np.random.default_rng([seed, 6])
    chosen: set[int] = set()
    for programs in FAMILIES.values():
        chosen |= set(rng.choice(list(programs), NEW_PROGRAMS_EACH, replace=False).tolist())
    return chosen


def plan(
    fonts: Mapping[str, bool], many: int, few: int, seed: int
) -> dict[tuple[str, int], list[Note]]:
    """Plan notes by soundfont and program.

    Args:
        fonts: name, and whether it is the one that tests.
        many: notes of a program that is in both tasks, by font.
        few: of one that is in the instrument task alone.
    """
    new = new_programs(seed)
    return {
        (font, program): _draw(font, program, tests, program in new, (many, few), seed)
        for font, tests in fonts.items()
        for programs in FAMILIES.values()
        for program in programs
    }


def _draw(
    font: str, program: int, tests: bool, new: bool, counts: tuple[int, int], seed: int
) -> list[Note]:
    rng = np.random.default_rng([seed, 7, *font.encode(), program])
    both = new == tests
    count = counts[0] if both else counts[1]
    pitches = np.concatenate([rng.permutation(PITCHES) for _ in range(-(-count // len(PITCHES)))])
    notes = []
    for number, pitch in enumerate(pitches[:count].tolist()):
        split = "test" if tests else "valid" if number % 5 == 4 else "train"
        notes.append(
            Note(
                name=f"{font}_{program:03d}_{number:02d}",
                program=program,
                pitch=pitch,
                split=split,
                pitch_split=split if both else None,
                length=float(rng.uniform(0.6, 1.3)),
                velocity=int(rng.integers(60, 115)),
                peak=float(rng.uniform(0.3, 0.95)),
            )
        )
    return notes
