"""`python -m music_ssl_fairseq map`: a map of a folder of songs, to look at and listen to."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from music_ssl_fairseq.cli import (
    CHECKPOINT,
    Parser,
    add_workers,
    exit_status,
    new_parser,
    real_number,
    whole_number,
)
from music_ssl_fairseq.errors import InputError, one_line
from music_ssl_fairseq.runtime.files import require_writable
from music_ssl_fairseq.runtime.user_command import with_option

DESCRIPTION = """\
Embed every song below a folder with a frozen model, and write one HTML page: a map on which similar
songs lie near each other, with a clip of each song to play, its nearest songs, and search by name.
The page holds everything, so it opens anywhere and needs no network.

Vectors are kept in --cache. The same command resumes an interrupted run, and computes only songs
that are new or changed. Files that cannot be read are named and left out.
"""

EXAMPLES = """\
examples:
  python -m music_ssl_fairseq map ~/music --upstream mfcc+chroma          # without a trained model
  python -m music_ssl_fairseq map ~/music --upstream runs/music_hubert/short
  python -m music_ssl_fairseq map ~/music --upstream hf:USER/NAME --layer 6 --out layer6.html
"""

_MAX_CLIP_SECONDS = 30.0
_MAX_LINES = 20


def get_parser() -> Parser:
    parser = new_parser("music_ssl_fairseq map", DESCRIPTION, EXAMPLES)
    add = parser.option
    add("folder FOLDER", "folder with audio, searched to any depth", type=Path)
    add(
        "--upstream,--checkpoint X",
        f"the model: {CHECKPOINT}; random:X for the same model with random weights; or a "
        "front end without training: mfcc, chroma, logmel, cqt, or several as mfcc+chroma",
        required=True,
    )
    add("--layer L", "layer of the model (default: the mean of its Transformer layers)", type=int)
    add("--out FILE", "the page", default=Path("song_map.html"))
    add(
        "--seconds S",
        "embed the middle S seconds of each song: quicker on a CPU (default: the whole song)",
        default=0.0,
        type=real_number(0),
    )
    add(
        "--clip-seconds S",
        "seconds to play of each song, from its middle; 0 for none (default: 8, fewer "
        "for more than 500 songs; 8 s take 40 kB)",
        type=real_number(0, _MAX_CLIP_SECONDS),
    )
    add("--neighbours N", "number of nearest songs to list", default=10, type=whole_number(1))
    add("--cache", "folder that keeps vectors", default=Path("feature_cache"))
    add(
        "--device",
        "where the model runs; auto: on a GPU if there is one",
        default="auto",
        choices=("auto", "cpu", "cuda"),
    )
    add_workers(parser, "processes that cut clips", least=0)
    return parser


def run(a: argparse.Namespace) -> None:
    """Do what the command line says. Songs that cannot be read are named, here and on the page."""
    if a.out.suffix.lower() not in (".html", ".htm"):
        page = a.out / "song_map.html"
        raise InputError(f"--out {a.out}: no page, FILE.html", with_option("--out", page))
    require_writable(a.out.parent, "--out")

    from manifests_tools.find import find_audio
    from music_ssl_fairseq.frames import counted
    from music_ssl_fairseq.map.embedding import Embedder
    from music_ssl_fairseq.map.song_page import write_page

    names, left_out = find_audio(a.folder, "FOLDER")
    embedder = Embedder(a.upstream, a.layer, a.seconds, a.device)
    what = f"{counted(len(names), 'audio file')} with {embedder.description}"
    print(f"embedding {what}; device {embedder.device}; writes {a.out}", file=sys.stderr)
    vectors, unread = embedder.embed(a.folder, names, a.cache)
    left_out += unread
    for item in left_out[:_MAX_LINES]:
        print(f"left out: {a.folder / one_line(item.name)}: {item.reason}", file=sys.stderr)
    if len(left_out) > _MAX_LINES:
        print(f"left out: {len(left_out)} in all; the page lists them", file=sys.stderr)
    songs = [name for name in names if name in vectors]
    if not songs:
        raise InputError(f"{a.folder}: none of {len(names)} audio files can be used, see above")
    written = write_page(a, songs, vectors, embedder.description, left_out)
    print(f"map of {counted(len(songs), 'song')}: {written}; open it in a browser")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = get_parser().parse_args(argv)
    return exit_status(lambda: run(arguments), arguments.out)


if __name__ == "__main__":
    sys.exit(main())
