"""Render the open tasks that come from scores, and write a CSV of each.

python examples/open_tasks/build.py --out open_tasks
"""

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import notes
import render
import scores
import songs

from music_ssl_fairseq.files import atomic_path

SONGS = {"train": 1000, "valid": 220, "test": 1000}
CHORDS = {"train": 1000, "valid": 200, "test": 1000}
NOTES = 20, 6
TEST_NOTES = 28, 8
TRAIN_FONTS = ("timgm6mb", "csound")
TEST_FONT = "fluidr3"


def fonts(folder: Path) -> dict[str, Path]:
    import pretty_midi

    sounds = folder / "usr/share/sounds/sf2"
    return {
        "timgm6mb": Path(pretty_midi.__file__).with_name("TimGM6mb.sf2"),
        "csound": sounds / "sf_GMbank.sf2",
        "fluidr3": sounds / "FluidR3_GM.sf2",
    }


def font_of(song: songs.Song) -> str:
    return TEST_FONT if song.split == "test" else TRAIN_FONTS[sum(song.seed) % 2]


def render_song(path: Path, song: songs.Song, font: Path) -> None:
    if not path.exists():
        render.write(path, render.song_waveform(song, font))


def render_notes(folder: Path, planned: Sequence[notes.Note], font: Path) -> None:
    paths = [folder / f"{note.name}.opus" for note in planned]
    if not all(path.exists() for path in paths):
        for path, waveform in zip(paths, render.note_waveforms(planned, font), strict=True):
            render.write(path, waveform)


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    print(path.stem, dict(Counter(row[2] for row in rows)), len({row[1] for row in rows}), "labels")


def main() -> None:
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fonts", type=Path, required=True)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    seed = 0
    out = args.out
    found = scores.read(args.scores, list(songs.COLLECTION_SHARES), args.workers)
    planned = songs.plan(found, SONGS, seed)
    chords = songs.plan_chords(found["bach"], CHORDS, seed)
    files = fonts(args.fonts)
    note_plan = {}
    for name in (*TRAIN_FONTS, TEST_FONT):
        many, few = NOTES if name != TEST_FONT else TEST_NOTES
        note_plan |= notes.plan({name: name == TEST_FONT}, many, few, seed)
    for folder in ("songs", "chords", "notes"):
        (out / "audio" / folder).mkdir(parents=True, exist_ok=True)
    rows = {name: [] for name in ("key", "families", "tempo", "metre", "beat", "downbeat")}
    for song in planned:
        path = f"audio/songs/{song.name}.opus"
        if key := songs.key_of(song):
            rows["key"].append((path, key, song.split))
        rows["families"].append((path, ";".join(songs.families_of(song)), song.split))
        rows["tempo"].append((path, songs.tempo_of(song), song.split))
        rows["metre"].append((path, songs.metre_of(song.piece.metre), song.split))
        beats = songs.beats_of(song)
        rows["beat"].append((path, ";".join(f"{t:.3f}" for t, _ in beats), song.split))
        down = [f"{t:.3f}" for t, place in beats if place == 1]
        if down:
            rows["downbeat"].append((path, ";".join(down), song.split))
    rows["chord"] = [(f"audio/chords/{s.name}.opus", label, s.split) for s, label in chords]
    listed = [note for group in note_plan.values() for note in group]
    rows["instrument"] = [(f"audio/notes/{n.name}.opus", n.family, n.split) for n in listed]
    rows["pitch"] = [
        (f"audio/notes/{n.name}.opus", f"{n.pitch:03d}", n.pitch_split)
        for n in listed
        if n.pitch_split
    ]
    for name, values in rows.items():
        write_csv(out / f"{name}.csv", values)
    with ProcessPoolExecutor(args.workers) as pool:
        jobs = [
            pool.submit(render_notes, out / "audio" / "notes", group, files[font])
            for (font, _), group in note_plan.items()
        ]
        mixed = [("chords", song) for song, _ in chords] + [("songs", song) for song in planned]
        # Every kind and split grows alike, so that an interrupted run has some of each.
        mixed.sort(key=lambda pair: pair[1].seed[2])
        jobs += [
            pool.submit(
                render_song, out / "audio" / kind / f"{song.name}.opus", song, files[font_of(song)]
            )
            for kind, song in mixed
        ]
        for job in tqdm(jobs, "render", unit="file"):
            job.result()


if __name__ == "__main__":
    sys.exit(main())
