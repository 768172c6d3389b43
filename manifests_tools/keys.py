"""Names of the 24 major and minor keys."""

import re

from music_ssl_fairseq.runtime.texts import quoted

_TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_KEY = re.compile(r"([A-G])([#b]?)[ :]*(maj|min)(?:or)?", re.IGNORECASE)

KEYS = tuple(sorted(f"{tonic} {mode}" for tonic in _TONICS for mode in ("major", "minor")))
"""The class list: `A major`, `A minor`, `Ab major`, ...; black keys are flats."""


def normalise_key(text: str) -> str:
    """Return one of `KEYS`; accept sharps, any case, `maj` and `min` (`C# minor` -> `Db minor`).

    Raises ValueError if `text` is not one major or minor key.
    """
    match = _KEY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{quoted(text)} is not a key such as `C# minor` or `Bb major`")
    tonic, accidental, mode = match.groups()
    shift = {"": 0, "#": 1, "b": -1}[accidental.lower()]
    name = _TONICS[(_SEMITONES[tonic.upper()] + shift) % 12]
    return f"{name} {mode.lower()}or"
