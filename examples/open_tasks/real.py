"""Cut the open tasks that come from recordings: package of a track, speaker of a syllable.

Sources are unpacked Debian packages (fetch.sh). Every clip passes the same chain as the rendered
ones: 16 kHz mono, the same peak range, the same Opus encoder.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import render

from music_ssl_fairseq import audio
from music_ssl_fairseq.errors import AudioError
from music_ssl_fairseq.frames import SAMPLE_RATE

PACKAGES = (
    *("davegnukem-data", "fretsonfire-songs-muldjord", "fretsonfire-songs-sectoid"),
    *("hyperrogue-music", "warmux-data", "wordwarvi-sound", "zaz-data"),
)
"""None of them is in examples/open_music/prepare.sh, which is for training."""
SPEAKERS = "klettres-data"
CLIP_SECONDS, SHORTEST_TRACK = 5.0, 20.0
CLIPS_PER_PACKAGE = {"train": 150, "valid": 40, "test": 150}
SPEECH_SECONDS, SHORTEST_SPEECH = 1.5, 0.3
UTTERANCES = 40, 100
"""A speaker's, at least and at most."""
SPLITS = ("train", "valid", "test")
SHARES = 0.45, 0.65
"""Where validation begins, and where the test does."""


@dataclass(frozen=True)
class Cut:
    """A part of a recording.

    Attributes:
        seconds: of the clip; a shorter part is followed by silence.
    """

    name: str
    label: str
    split: str
    source: Path
    start: int
    seconds: float


def _place(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _splits(names: Sequence[str]) -> dict[str, str]:
    """Put each name in a split, in an order of no meaning; of three names, one in each."""
    ordered = sorted(names, key=_place)
    places = (np.arange(len(ordered)) + 0.5) / max(1, len(ordered))
    return {
        name: SPLITS[int(np.searchsorted(SHARES, place, side="right"))]
        for name, place in zip(ordered, places, strict=True)
    }


def _length(file: Path) -> int:
    """Return the number of samples at 16 kHz; 0 if it is no audio."""
    try:
        return audio.probe(file).length_at()
    except AudioError:
        return 0


def _audio_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.suffix in (".ogg", ".mp3") and path.is_file()
    )


def package_cuts(root: Path) -> list[Cut]:
    """Cut clips of tracks; all clips of a track are in one split."""
    found = []
    for package in PACKAGES:
        tracks: dict[str, tuple[Path, int]] = {}
        for path in _audio_files(root / package):
            # Frets on Fire has a folder per song, with its guitar by itself.
            name = path.parent.name if path.stem in ("song", "guitar") else path.stem
            length = _length(path)
            if path.stem != "guitar" and length >= SHORTEST_TRACK * SAMPLE_RATE:
                tracks[name] = path, length
        splits = _splits(list(tracks))
        for split, at_most in CLIPS_PER_PACKAGE.items():
            names = [name for name in sorted(tracks) if splits[name] == split]
            for name in names:
                path, length = tracks[name]
                found += _spread(package, name, split, path, length, at_most // len(names))
    return found


def _spread(
    package: str, track: str, split: str, path: Path, length: int, at_most: int
) -> Iterator[Cut]:
    """Spread clips that do not overlap evenly over a track."""
    clip = round(CLIP_SECONDS * SAMPLE_RATE)
    count = min(at_most, length // clip)
    safe = "".join(c if c.isalnum() else "-" for c in track)
    for number in range(count):
        start = round(number * (length - clip) / max(1, count - 1))
        name = f"{package}_{safe}_{number:03d}"
        yield Cut(name, package, split, path, start, CLIP_SECONDS)


def speaker_cuts(root: Path) -> list[Cut]:
    """Cut letters and syllables; the speaker is the folder's language, which has one each."""
    found = []
    folders = sorted((root / SPEAKERS / "usr/share/klettres").iterdir())
    for folder in (path for path in folders if path.is_dir()):
        files = {
            f"{path.parent.name}-{path.stem}": path
            for path in _audio_files(folder)
            if _length(path) >= SHORTEST_SPEECH * SAMPLE_RATE
        }
        if len(files) < UTTERANCES[0]:
            continue
        names = sorted(files, key=_place)[: UTTERANCES[1]]
        for name, split in _splits(names).items():
            safe = "".join(c if c.isalnum() else "-" for c in name)
            full = f"{folder.name.replace('_', '-')}-{safe}-{_place(name)[:4]}_0"
            found.append(Cut(full, folder.name, split, files[name], 0, SPEECH_SECONDS))
    return found


def cut(path: Path, planned: Cut) -> None:
    """Write a clip."""
    if path.exists():
        return
    length = round(planned.seconds * SAMPLE_RATE)
    waveform = audio.read(planned.source, planned.start, length).astype(np.float64)
    peak = np.random.default_rng(list(planned.name.encode())).uniform(0.3, 0.95)
    waveform = np.pad(waveform, (0, max(0, length - len(waveform))))
    render.write(path, render.scaled(waveform, float(peak)))
