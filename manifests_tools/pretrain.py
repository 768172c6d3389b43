"""Write train.tsv and valid.tsv of a folder of music: `python -m manifests_tools pretrain`."""

import argparse
import contextlib
import os
import shlex
from collections import Counter
from pathlib import Path
from textwrap import fill

from hydra_plugins._music_ssl_fairseq_command import shell_line
from manifests_tools.convert import change_speeds, convert_tracks, rate_at
from manifests_tools.examine import COPY, SILENT, ExaminedTrack, add_reading_options, examine_tracks
from manifests_tools.find import KINDS, find_audio, is_within, require_folder
from manifests_tools.split import GroupBy, choose_valid, group_of
from manifests_tools.tar_shards import SHARD_HOURS, write_shards
from music_ssl_fairseq.cli import Parser, new_parser, real_number
from music_ssl_fairseq.data.copies import find_copies
from music_ssl_fairseq.data.label_metadata import labels_beside
from music_ssl_fairseq.data.left_out import REPORT, LeftOut, by_name, count_kinds, write_left_out
from music_ssl_fairseq.data.manifest import Manifest, concerns, write_manifest
from music_ssl_fairseq.errors import InputError, warn
from music_ssl_fairseq.frames import SAMPLE_RATE, amount, counted, hours
from music_ssl_fairseq.runtime.files import atomic_path, require_writable
from music_ssl_fairseq.runtime.user_command import beside, with_option, with_options

DESCRIPTION = f"""\
List the audio below a folder, of any sample rate and number of channels, in OUT/train.tsv and
OUT/valid.tsv. Files that cannot be used are listed, with the reason, in OUT/left_out.tsv. The same
folder gives the same manifests.

formats: {fill(KINDS, 90, subsequent_indent="         ")}
"""
EXAMPLE = "example: python -m manifests_tools pretrain --root ~/Music --group-by 1"

Splits = dict[str, list[ExaminedTrack]]

_FRAMES_PER_SECOND, _FRAMES_PER_CLUSTER = 100, 40  # of MFCC, and what the labeler needs


def get_parser() -> Parser:
    parser = new_parser("manifests_tools pretrain", DESCRIPTION, EXAMPLE)
    add = parser.option
    add("--root DIR", "folder with audio, searched to any depth", required=True)
    add("--out DIR", "where to write", default="manifests")
    add(
        "--valid-share X",
        "share of the total duration for validation, between 0 and 1",
        default=0.05,
        type=_share,
    )
    add(
        "--group-by WHAT",
        "what is kept in one split: `folder`, the folder a file is in (default); "
        "a number n, the first n folders below the root (1: the artist in artist/album/track); "
        "or `file`, nothing",
        default="folder",
        type=_group_by,
    )
    add("--min-seconds S", "leave out files shorter than this", default=1.0, type=real_number(0))
    add("--seed", "chooses the groups that validate", default=0, type=int)
    _add_copies(parser)
    add_reading_options(parser)
    add("--force", "replace existing manifests", action="store_true")
    return parser


def _add_copies(parser: Parser) -> None:
    add = parser.option
    add(
        "--convert DIR",
        "also write 16 kHz mono 16-bit FLAC copies below DIR, and list those: smaller, and "
        "quicker to train from; an interrupted run resumes",
    )
    add(
        "--speeds S,S",
        "with --convert: also write copies of the training tracks at these speeds, and list "
        "them in train.tsv. Pitch and tempo change together: 0.89 and 1.12 are two semitones down "
        "and up. The same music then teaches more keys and tempi",
        default=(),
        type=_speeds,
    )
    add(
        "--shards DIR",
        "write those copies to tar files in DIR instead, in webdataset's layout, and list "
        "their places; for storage that is slow with many files",
    )
    add(
        "--shard-hours H",
        "of music per shard (default: %(default)g, some 1 GB)",
        default=SHARD_HOURS,
        type=real_number(0),
    )
    add(
        "--labels DIR",
        "with --shards: also put the labels in this folder beside the copies; they must be of "
        "manifests of the same --root and options",
    )


def run(a: argparse.Namespace) -> None:
    """Write the manifests, and a summary to stdout.

    Raises InputError if the root holds no usable audio, too little to split, or the output exists.
    """
    root = os.path.abspath(a.root)
    require_folder(root)
    _refuse_overwriting(Path(a.out), a.force)
    folder = _check_copies(root, a.convert, a.shards, a.shard_hours, a.labels)
    if a.speeds and not a.convert:
        message = "--speeds changes the speed of copies: give --convert DIR as well"
        raise InputError(message, with_option("--convert", beside(f"{root}_copies")))
    require_writable(a.out, "--out")
    names, unlisted = find_audio(root)
    tracks, unusable = examine_tracks(root, names, a.min_seconds, a.thorough, a.workers)
    tracks, of_no_use = _without_silence_and_copies(root, tracks)
    left_out = [*unlisted, *unusable, *of_no_use]
    lines = {track.name: (track.name, track.num_samples) for track in tracks}
    if a.convert:
        copies, damaged = convert_tracks(root, folder, tracks, a.workers)
        left_out += damaged
        tracks = [track for track in tracks if track.name in copies]
        lines = {track.name: (copies[track.name], track.num_samples) for track in tracks}
    report = Path(a.out, REPORT)
    write_left_out(report, by_name(left_out))
    groups = _groups(tracks, a.group_by, left_out, report)
    splits = _split(tracks, groups, a.valid_share, a.seed)
    for members in splits.values():  # so that manifests do not depend on the order of the folder
        members.sort(key=lambda track: os.fsencode(lines[track.name][0]))
    if a.shards:
        lines, damaged = write_shards(root, folder, splits, a.labels, a.shard_hours, a.workers)
        splits = {s: [t for t in members if t.name in lines] for s, members in splits.items()}
        left_out += damaged
        write_left_out(report, by_name(left_out))
    listed = {split: [lines[track.name] for track in members] for split, members in splits.items()}
    others = change_speeds(folder, [name for name, _ in listed["train"]], a.speeds, a.workers)
    listed["train"] += others
    with contextlib.ExitStack() as stack:  # both or, on a full disk, neither
        for split, of_split in listed.items():
            temporary = stack.enter_context(atomic_path(Path(a.out, f"{split}.tsv")))
            write_manifest(temporary, folder or root, of_split)
    _summarise(a.out, splits, others, groups, left_out, report)


def _split(
    tracks: list[ExaminedTrack], groups: dict[str, str], valid_share: float, seed: int
) -> Splits:
    """Divide whole groups between train and valid."""
    lengths: Counter[str] = Counter()
    for track in tracks:
        lengths[groups[track.name]] += track.num_samples
    chosen = choose_valid(lengths, valid_share, seed)
    return {
        "train": [track for track in tracks if groups[track.name] not in chosen],
        "valid": [track for track in tracks if groups[track.name] in chosen],
    }


def _without_silence_and_copies(
    root: str, tracks: list[ExaminedTrack]
) -> tuple[list[ExaminedTrack], list[LeftOut]]:
    """Leave out silent tracks and copies; return the other tracks, and what was left out."""
    left_out = [LeftOut(track.name, SILENT) for track in tracks if track.silent]
    tracks = [track for track in tracks if not track.silent]
    copies = find_copies([os.path.join(root, track.name) for track in tracks])
    kept = []
    for track in tracks:
        first = copies.get(os.path.join(root, track.name))
        if first is None:
            kept.append(track)
        else:
            left_out.append(LeftOut(track.name, f"{COPY}: {os.path.relpath(first, root)}"))
    return kept, left_out


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


def _group_by(text: str) -> GroupBy:
    if text in ("folder", "file"):
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither `folder`, `file` nor a positive number")


def _speeds(text: str) -> list[float]:
    try:
        speeds = list(map(float, text.split(",")))
    except ValueError:
        speeds = []
    if not speeds or not all(0.5 <= speed <= 2 for speed in speeds):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers from 0.5 to 2")
    # The speed of the music itself, or one speed twice, would list equal tracks.
    if len({SAMPLE_RATE, *map(rate_at, speeds)}) <= len(speeds):
        raise argparse.ArgumentTypeError(f"{text!r}: must differ from 1 and each other by 1 %")
    return speeds


def _refuse_overwriting(out: Path, force: bool) -> None:
    existing = [f"{split}.tsv" for split in ("train", "valid") if (out / f"{split}.tsv").exists()]
    if existing and not force:
        raise InputError(
            f"{out}: {' and '.join(existing)} exist already; "
            "--out writes elsewhere; --force would replace them",
            with_option("--out", beside(out)),
        )


def _check_copies(
    root: str, convert: str | None, shards: str | None, shard_hours: float, labels: str | None
) -> str:
    """Check the options of copies; return their folder, or "" without copies."""
    if convert is not None and shards is not None:
        message = "--convert and --shards both write copies: give one of them"
        raise InputError(message, with_options({"--shards": None}))
    if labels is not None and shards is None:
        message = "--labels puts labels into shards: give --shards DIR as well"
        raise InputError(message, with_option("--shards", beside("shards")))
    if not shard_hours > 0:
        raise InputError(f"--shard-hours {shard_hours:g}: a shard holds more than nothing")
    if not (convert or shards):
        return ""
    option = "--convert" if convert else "--shards"
    folder = os.path.abspath(convert or shards or "")
    if is_within(folder, root) or is_within(root, folder):
        # The next run would list or replace copies among their sources.
        raise InputError(
            f"{option} {folder} and --root {root} lie within each other: "
            "choose a folder for the copies beside the root",
            with_option(option, beside(f"{root}_copies")),
        )
    if not os.path.isdir(folder):  # copies that exist may be reused where nothing is written
        require_writable(folder, option)
    return folder


def _groups(
    tracks: list[ExaminedTrack], group_by: GroupBy, left_out: list[LeftOut], report: Path
) -> dict[str, str]:
    """Return each track's group, of which there are two at least: files, if all are in one."""
    if len(tracks) < 2:
        raise InputError(
            f"{len(tracks) or 'no'} usable file{'s' if not tracks else ''}, but training and "
            f"validation need one each; left out: {count_kinds(left_out)}, see {report}",
            f"cat {shlex.quote(str(report))}",
        )
    found = {track.name: group_of(track.name, group_by) for track in tracks}
    if len(set(found.values())) > 1:
        return found
    warn(
        f"--group-by {group_by} puts all files into one group: splitting by file instead, so an "
        "album may be in both splits"
    )
    return {track.name: track.name for track in tracks}


def _summarise(
    out: str,
    splits: Splits,
    at_other_speeds: list[tuple[str, int]],
    groups: dict[str, str],
    left_out: list[LeftOut],
    report: Path,
) -> None:
    rates: Counter[int] = Counter()
    by_folder = any(name != group for name, group in groups.items())
    for split, tracks in splits.items():
        rates.update(track.sample_rate for track in tracks)
        duration = amount(hours([track.num_samples for track in tracks]))
        count = len({groups[track.name] for track in tracks})
        folders = f", {counted(count, 'folder')}" * by_folder
        print(f"{split}: {counted(len(tracks), 'track')}, {duration}{folders}")
    if at_other_speeds:
        duration = amount(hours([num_samples for _, num_samples in at_other_speeds]))
        print(f"also in train: {len(at_other_speeds)} copies at other speeds, {duration}")
    print("sample rates:", ", ".join(f"{rate} Hz {rates[rate]}" for rate in sorted(rates)))
    print(f"left out: {count_kinds(left_out)}" + (f", listed in {report}" if left_out else ""))
    for sentence in concerns(Manifest(Path(out, "valid.tsv"))):
        warn(sentence)
    where = ""
    if Path(out) != Path("manifests"):
        labels = shlex.quote(str(labels_beside(out)))
        where = f" --manifests {shlex.quote(out)} --labels {labels}"
    # HuBERT's number of clusters, or what so little music has frames for.
    frames = _FRAMES_PER_SECOND * 3600 * hours([t.num_samples for t in splits["train"]])
    k = max(2, min(500, int(frames / _FRAMES_PER_CLUSTER)))
    print(f"next: python -m music_ssl_fairseq label --k {k}{shell_line(where)}")
