"""Make one corpus of the study from unpacked Debian packages: coded alike, with its licences.

    python examples/study/corpus.py --packages PACKAGES --list examples/study/music.txt --out DIR

Each track becomes 16 kHz mono Opus at 16 kbit/s, as Ogg. Clips shorter than --min-seconds are
left out, or with --join put together, in order, with those of their folder: prompts of a second
each are no crops of five. Of what is found, --hours are taken, evenly over the packages' tracks.
Files that exist are kept. Writes OUT/PACKAGE/*.ogg, OUT/SOURCES.tsv (track, seconds, files, the
first), OUT/SHA256SUMS and OUT/licences/PACKAGE.txt, the package's own debian/copyright.
"""

import argparse
import hashlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from music_ssl_fairseq import audio
from music_ssl_fairseq.cli import exit_status, whole_number
from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.frames import SAMPLE_RATE, amount, counted
from music_ssl_fairseq.runtime.files import atomic_path, checksum
from music_ssl_fairseq.runtime.machine import available_cpus

SUFFIXES = (".ogg", ".oga", ".opus", ".mp3", ".flac", ".wav", ".g722")
JOINED_SECONDS, SHORTEST_SECONDS = 120.0, 0.3
_LEVEL = 0.96  # libsndfile's 0 to 1 for Opus: 16 kbit/s


@dataclass(frozen=True)
class Track:
    """One track to write, made of these files in order."""

    name: str
    sources: tuple[Path, ...]
    seconds: float


def packages_of(file: Path) -> list[str]:
    """Read the names at the beginnings of a list's lines; `#` begins a comment."""
    lines = [line.partition("#")[0].split() for line in file.read_text("utf-8").splitlines()]
    return [words[0] for words in lines if words]


def found_in(package: Path, min_seconds: float, join: bool) -> Iterator[Track]:
    """Find tracks of a package in the order of their names; copies of a file count once."""
    seen: set[str] = set()
    folders: dict[Path, list[tuple[Path, float]]] = {}
    for file in sorted(package.rglob("*")):
        if file.suffix.lower() not in SUFFIXES or file.is_symlink() or not file.is_file():
            continue
        digest = checksum(file)
        if digest in seen:
            continue
        seen.add(digest)
        try:
            about = audio.probe(file)
        except AudioError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        seconds = about.num_samples / about.sample_rate
        if seconds >= (SHORTEST_SECONDS if join else min_seconds):
            folders.setdefault(file.parent, []).append((file, seconds))
    for files in folders.values():
        for group in _joined(files) if join else [[one] for one in files]:
            sources = tuple(file for file, _ in group)
            yield Track(_name(package, sources[0]), sources, sum(length for _, length in group))


def _joined(files: Sequence[tuple[Path, float]]) -> Iterator[list[tuple[Path, float]]]:
    group: list[tuple[Path, float]] = []
    for one in files:
        group.append(one)
        if sum(seconds for _, seconds in group) >= JOINED_SECONDS:
            yield group
            group = []
    if sum(seconds for _, seconds in group) >= JOINED_SECONDS / 4:
        yield group


def _name(package: Path, file: Path) -> str:
    inside = str(file.relative_to(package))
    digest = hashlib.sha256(inside.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{package.name}/{digest}_{re.sub(r'[^A-Za-z0-9]+', '_', file.stem)[:40]}.ogg"


def chosen(tracks: Sequence[Track], hours: float) -> list[Track]:
    """Take tracks in the order of their names' digests until there are `hours`."""
    order = sorted(tracks, key=lambda track: hashlib.sha256(track.name.encode()).hexdigest())
    taken, seconds = [], 0.0
    for track in order:
        if seconds >= hours * 3600:
            break
        taken.append(track)
        seconds += track.seconds
    return sorted(taken, key=lambda track: track.name)


def write(job: tuple[Path, Track]) -> str | None:
    """Write a track unless it is there; the reason if it cannot be read."""
    import soundfile

    out, track = job
    if out.exists():
        return None
    try:
        parts = [audio.read(source) for source in track.sources]
    except AudioError as error:
        return str(error)
    waveform = np.clip(np.concatenate(parts), -1, 1)
    with (
        atomic_path(out) as temporary,
        soundfile.SoundFile(
            temporary, "w", SAMPLE_RATE, 1, "OPUS", format="OGG", compression_level=_LEVEL
        ) as file,
    ):
        for start in range(0, len(waveform), 10 * SAMPLE_RATE):
            file.write(waveform[start : start + 10 * SAMPLE_RATE])
    return None


def run(
    packages: Path,
    listed: Path,
    out: Path,
    hours: float,
    min_seconds: float,
    join: bool,
    workers: int,
) -> bool:
    """Make the corpus; False if there are fewer hours than asked for.

    Raises:
        InputError: if a package of the list is not there, or has no track.
    """
    tracks: list[Track] = []
    for name in packages_of(listed):
        folder = packages / name
        if not folder.is_dir():
            raise InputError(f"{folder}: no such package; fetch it: see examples/study/study.sh")
        found = list(found_in(folder, min_seconds, join))
        if not found:
            raise InputError(f"{folder}: no audio long enough for a track: take it out of {listed}")
        tracks += found
        (out / "licences").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / f"usr/share/doc/{name}/copyright", out / f"licences/{name}.txt")
    taken = chosen(tracks, hours)
    with ProcessPoolExecutor(workers) as pool:
        for reason in pool.map(write, [(out / track.name, track) for track in taken]):
            if reason:
                print(f"left out: {reason}", file=sys.stderr)
    taken = [track for track in taken if (out / track.name).exists()]
    rows = [f"{t.name}\t{t.seconds:.1f}\t{len(t.sources)}\t{t.sources[0].name}\n" for t in taken]
    sums = [f"{checksum(out / track.name)}  {track.name}\n" for track in taken]
    for file, lines in (("SOURCES.tsv", rows), ("SHA256SUMS", sums)):
        with atomic_path(out / file) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    taken_hours = sum(track.seconds for track in taken) / 3600
    print(f"{out}: {counted(len(taken), 'track')}, {amount(taken_hours)}")
    return taken_hours >= hours - 0.1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--packages", type=Path, required=True, help="folder with unpacked packages")
    add("--list", type=Path, required=True, dest="listed", help="file with a package per line")
    add("--out", type=Path, required=True, help="folder to write to")
    add("--hours", type=float, default=10.0, help="how much to take (default: 10)")
    add("--min-seconds", type=float, default=20.0, help="shortest track (default: 20)")
    add("--join", action="store_true", help="join the clips of a folder to tracks of two minutes")
    number, cpus = whole_number(1), available_cpus()
    add("--workers", type=number, default=cpus, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    return exit_status(lambda: run(**vars(args)), args.out)


if __name__ == "__main__":
    sys.exit(main())
