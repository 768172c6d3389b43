"""`python -m manifests_tools NAME ...`: run one builder."""

import pkgutil
import signal
import sys
from collections.abc import Sequence

from music_ssl_fairseq.cli import BEGINS, dispatch, exit_status

BUILDERS = {
    "pretrain": ("manifests_tools.pretrain:", "write train.tsv and valid.tsv of a music folder"),
    "check": ("manifests_tools.check:", "check manifests, their audio and their labels"),
    "fetch": ("manifests_tools.fetch:", "download the data set of one of the tasks below"),
    "mtt": ("manifests_tools.magnatagatune:tagging", "MagnaTagATune, 50 tags"),
    "giantsteps-key": ("manifests_tools.giantsteps:key", "GiantSteps, 24 keys"),
    "gtzan-genre": ("manifests_tools.gtzan:genre", "GTZAN, 10 genres"),
    "gtzan-beat": ("manifests_tools.gtzan:beat", "GTZAN-Rhythm, beat times"),
    "emomusic": ("manifests_tools.emomusic:emotion", "emoMusic, arousal and valence"),
    "nsynth-instrument": ("manifests_tools.nsynth:instrument", "NSynth, 11 instrument families"),
    "nsynth-pitch": ("manifests_tools.nsynth:pitch", "NSynth, 128 pitches"),
    "vocalset-singer": ("manifests_tools.vocalset:singer", "VocalSet, 20 singers"),
    "vocalset-technique": ("manifests_tools.vocalset:technique", "VocalSet, 10 techniques"),
    "mtg-instrument": ("manifests_tools.mtg_jamendo:instrument", "MTG-Jamendo, 40 instruments"),
    "mtg-moodtheme": ("manifests_tools.mtg_jamendo:moodtheme", "MTG-Jamendo, 56 moods"),
    "mtg-genre": ("manifests_tools.mtg_jamendo:genre", "MTG-Jamendo, 87 genres"),
    "mtg-top50": ("manifests_tools.mtg_jamendo:top50", "MTG-Jamendo, 50 tags"),
    "custom": ("manifests_tools.custom:", "a probing task of your own, from a CSV"),
}
"""Name -> (`module:` or `module:attribute`, with `get_parser` and `run`; its purpose)."""


_USAGE = """\
usage: python -m manifests_tools NAME [options]

pretrain and check serve training; from mtt on they write the data of a probing task:
{names}

`python -m manifests_tools NAME --help` lists the options of one.

example: python -m manifests_tools pretrain --root ~/Music
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the builder that the first argument names; return the exit status."""
    return dispatch("python -m manifests_tools", _USAGE, BUILDERS, _run, argv)


def _run(place: str, rest: list[str]) -> int:
    # A job scheduler's SIGTERM also ends the workers and removes half-written files.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        builder = pkgutil.resolve_name(place)
        a = builder.get_parser().parse_args(rest)
        return exit_status(lambda: not builder.run(a), getattr(a, "out", "") or ".", BEGINS)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
