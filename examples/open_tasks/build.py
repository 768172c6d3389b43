"""Render and cut the audio of the open tasks, and write a CSV of each.

    python examples/open_tasks/build.py --packages open_tasks/packages --out open_tasks

writes OUT/data/NAME.csv (path, label, split) and OUT/data/audio. Everything follows from the seed;
hashes.json, beside this file, has the digests of plan, labels and sound. Files that exist are kept.
"""

import argparse
import csv
import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import notes
import real
import render
import scores
import songs
import tasks

from music_ssl_fairseq.cli import exit_status, whole_number
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.files import atomic_path
from music_ssl_fairseq.runtime.machine import available_cpus

SEED = 0
SONGS = {"train": 1000, "valid": 220, "test": 1000}
SONGS_WITH_A_KEY = {**SONGS, "test": 1020}
"""More, because some scores declare no key; only the task of keys has those beyond SONGS."""
CHORDS = {"train": 1000, "valid": 200, "test": 1000}
NOTES, TEST_NOTES = (20, 6), (28, 8)
"""Of a program and font: if its pitch counts in both tasks, and if only its family does."""
EACH_COLLECTION = {"train": 170, "valid": 35, "test": 200}
TRAIN_FONTS = ("timgm6mb", "csound")
TEST_FONT = "fluidr3"
HASHES = Path(__file__).with_name("hashes.json")
Rows = dict[str, list[tasks.Row]]
Jobs = dict[str, Callable[[], None]]
"""What makes a file, by its path below the data's folder."""


def fonts(packages: Path) -> dict[str, Path]:
    """Find the soundfonts' files, by name.

    Raises:
        InputError: if one is missing.
    """
    import pretty_midi

    found = {
        "timgm6mb": Path(pretty_midi.__file__).with_name("TimGM6mb.sf2"),
        "csound": packages / "csound-soundfont/usr/share/sounds/sf2/sf_GMbank.sf2",
        "fluidr3": packages / "fluid-soundfont-gm/usr/share/sounds/sf2/FluidR3_GM.sf2",
    }
    for path in found.values():
        if not path.exists():
            raise InputError(
                f"{path}: no such file; run bash examples/open_tasks/fetch.sh {packages}"
            )
    return found


def font_of(song: songs.Song) -> str:
    """Choose a soundfont: one for testing, the others by the song's seed."""
    return TEST_FONT if song.split == "test" else TRAIN_FONTS[sum(song.seed) % 2]


def song_rows(planned: Sequence[songs.Song]) -> Rows:
    """Plan the tasks on excerpts of scores."""
    rows: Rows = {name: [] for name in ("key", "families", "tempo", "metre", "beat", "downbeat")}
    for song in planned:
        beats = songs.beats_of(song)
        labels = {
            "key": songs.key_of(song),
            "families": ";".join(songs.families_of(song)),
            "tempo": songs.tempo_of(song),
            "metre": songs.metre_of(song.piece.metre),
            "beat": ";".join(f"{time:.3f}" for time, _ in beats),
            "downbeat": ";".join(f"{time:.3f}" for time, place in beats if place == 1),
        }
        if song.seed[-1] >= SONGS[song.split]:
            labels = {"key": labels["key"]}
        for name, label in labels.items():
            if label or name == "families":
                rows[name].append((_path("songs", song.name), label or "", song.split))
    return rows


def collection_rows(planned: Sequence[songs.Song]) -> list[tasks.Row]:
    """Choose as many excerpts of each collection."""
    rows = []
    for collection in scores.COLLECTIONS:
        for split, count in EACH_COLLECTION.items():
            names = [
                song.name
                for song in planned
                if song.piece.collection == collection and song.split == split
            ]
            rows += [(_path("songs", name), collection, split) for name in names[:count]]
    return rows


def note_rows(listed: Sequence[notes.Note]) -> Rows:
    """Plan the tasks on single notes."""
    return {
        "instrument": [(_path("notes", n.name), n.family, n.split) for n in listed],
        "pitch": [
            (_path("notes", n.name), f"{n.pitch:03d}", n.pitch_split)
            for n in listed
            if n.pitch_split
        ],
    }


def _path(kind: str, name: str) -> str:
    return f"audio/{kind}/{name}.flac"


def plan(out: Path, packages: Path, workers: int) -> tuple[Rows, Jobs, dict[str, Any]]:
    """Plan rows of each task, what makes each file, and by name all that decides the audio."""
    found = scores.read(out / "scores", list(scores.COLLECTIONS), workers)
    files = fonts(packages)
    planned = songs.plan(found, songs.COLLECTION_SHARES, SONGS_WITH_A_KEY, SEED)
    chords = songs.plan_chords(found["bach"], CHORDS, SEED)
    others = [
        song
        for number, name in enumerate(songs.OTHER_COLLECTIONS)
        for song in songs.plan(found, {name: 1.0}, EACH_COLLECTION, SEED, 10 + 3 * number)
    ]
    groups = {
        **notes.plan(dict.fromkeys(TRAIN_FONTS, False), *NOTES, SEED),
        **notes.plan({TEST_FONT: True}, *TEST_NOTES, SEED),
    }
    cuts = {
        "package": real.package_cuts(packages),
        "speaker": real.speaker_cuts(packages),
    }
    rows = song_rows(planned)
    rows["collection"] = collection_rows([*planned, *others])
    rows["chord"] = [(_path("chords", song.name), label, song.split) for song, label in chords]
    rows |= note_rows([note for group in groups.values() for note in group])
    for name, made in cuts.items():
        rows[name] = [(_path(name, one.name), one.label, one.split) for one in made]
    data = out / "data"
    jobs: Jobs = {}
    for kind, made in (("songs", [*planned, *others]), ("chords", [song for song, _ in chords])):
        for song in made:
            path = _path(kind, song.name)
            jobs[path] = partial(render.song, data / path, song, files[font_of(song)])
    for (font, _), group in groups.items():
        job = partial(render.notes, data / "audio/notes", group, files[font])
        jobs |= {_path("notes", note.name): job for note in group}
    for name, made in cuts.items():
        for one in made:
            jobs[_path(name, one.name)] = partial(real.cut, data / _path(name, one.name), one)
    drawn = {
        "songs": [vars(song) for song in (*planned, *others, *(song for song, _ in chords))],
        "notes": list(groups.values()),
        "soundfonts": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()],
        "recordings": [
            (one.name, one.start, one.source.stat().st_size)
            for made in cuts.values()
            for one in made
        ],
    }
    return rows, jobs, drawn


def check(rows: Mapping[str, Sequence[tasks.Row]], drawn: Mapping[str, Any], record: bool) -> None:
    """Compare plan and labels with what they were when hashes.json was made.

    Args:
        record: write it instead.

    Raises:
        InputError: if something differs.
    """
    found = {
        name: hashlib.sha256(_csv(of_task).encode()).hexdigest() for name, of_task in rows.items()
    }
    for name, values in drawn.items():
        found[name] = hashlib.sha256(repr(_rounded(values)).encode()).hexdigest()
    if differ := _differing(found, record):
        raise InputError(
            f"{', '.join(differ)}: not those that {HASHES} records, so figures could not "
            "be compared with others'. Scores come from music21 10.5 and recordings from Debian "
            "12; build.py --record accepts what there is, for comparisons of your own"
        )


def _differing(found: Mapping[str, str], record: bool) -> list[str]:
    """Return the names whose digests hashes.json has otherwise; if `record`, write them there."""
    expected = json.loads(HASHES.read_text(encoding="utf-8")) if HASHES.exists() else {}
    if record:
        with atomic_path(HASHES) as temporary:
            temporary.write_text(json.dumps({**expected, **found}, indent=2) + "\n", "utf-8")
        return []
    return [name for name, digest in found.items() if expected.get(name) != digest]


def check_sound(data: Path, names: Sequence[str], record: bool) -> None:
    """Warn of clips that sound otherwise than when hashes.json was made.

    Another version of a library, or another processor, may round otherwise.

    Args:
        names: below the folder of data.
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(str(Path(name).parent), []).append(name)
    found = {kind: tasks.sound(data, of_kind) for kind, of_kind in kinds.items()}
    for kind in _differing(found, record):
        print(
            f"warning: {data / kind}: sounds otherwise than what docs/open_tasks.md has figures "
            "of. Figures made from this folder compare with each other. If the folder is old, "
            "remove it and run again; else another kind of processor, or other versions of "
            "midirenderer or libsndfile, made it",
            file=sys.stderr,
        )


def _rounded(value: Any) -> Any:
    """Return plain values that print alike on every machine."""
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return _rounded(vars(value))
    return round(value, 6) if isinstance(value, float) else value


def _csv(rows: Sequence[tasks.Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "label", "split"), *rows])
    return text.getvalue()


def run(out: Path, packages: Path, small: bool, workers: int, record: bool = False) -> None:
    """Make what is missing.

    Raises:
        InputError: as `fonts` and `check`.
    """
    from tqdm import tqdm

    rows, jobs, drawn = plan(out, packages, workers)
    check(rows, drawn, record)
    data = out / "data"
    for name, of_task in rows.items():
        with atomic_path(data / f"{name}.csv") as temporary:
            temporary.write_text(_csv(of_task), encoding="utf-8")
    wanted = {path for path in _clips(data, small) if not (data / path).exists()}
    # A group of notes is one job for many files.
    missing = {id(jobs[path]): jobs[path] for path in sorted(wanted)}
    for kind in {Path(path).parent for path in wanted}:
        (data / kind).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        futures = [pool.submit(job) for job in missing.values()]
        for future in tqdm(futures, "audio", disable=not futures):
            future.result()
    check_sound(data, _clips(data, small=True), record)


def _clips(data: Path, small: bool) -> list[str]:
    rows = [tasks.rows_of(task, data, small) for task in tasks.chosen((), data)]
    return sorted({path for of_task in rows for path, _, _ in of_task})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write to")
    add("--packages", type=Path, required=True, help="folder that fetch.sh has filled")
    add("--small", action="store_true", help="only what judge.py --small takes")
    number, cpus = whole_number(1), available_cpus()
    add("--workers", type=number, default=cpus, help="processes (default: one per core)")
    add("--record", action="store_true", help="rewrite hashes.json with what is found")
    args = parser.parse_args(argv)
    return exit_status(lambda: run(**vars(args)), args.out)


if __name__ == "__main__":
    sys.exit(main())
