"""Record the settings and the outcome of an extraction."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from music_ssl_fairseq.data.left_out import REPORT, LeftOut, write_left_out
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.errors import one_line
from music_ssl_fairseq.extract.run import Outcome
from music_ssl_fairseq.runtime.files import checksum
from music_ssl_fairseq.upstream.model import Upstream
from music_ssl_fairseq.upstream.windows import Windowing


def settings_of(
    upstream: Upstream,
    tracks: Manifest,
    layers: list[int],
    pool: str,
    dtype: str,
    windowing: Windowing,
) -> dict[str, Any]:
    """Return the settings that decide the features, and must be equal for a run to resume."""
    return {
        "family": upstream.family,
        "fingerprint": upstream.fingerprint,
        "layers": layers,
        "pool": pool,
        "dtype": "float32" if pool == "mean" else dtype,
        "dimension": upstream.dimension,
        "sample_rate": upstream.sample_rate,
        "frame_rate": upstream.frame_rate,
        "normalise": upstream.normalise,
        "precision": upstream.precision,
        "windows": asdict(windowing),
        "manifest": checksum(tracks.file),
    }


def report(out: Path, tracks: Manifest, outcome: Outcome) -> None:
    """Write left_out.tsv, and print what was done."""
    file = out / REPORT
    file.unlink(missing_ok=True)
    if outcome.left_out:
        left_out = [
            LeftOut(tracks.name(track), why) for track, why in sorted(outcome.left_out.items())
        ]
        write_left_out(file, left_out)
        for item in left_out[:10]:
            print(f"left out: {one_line(item.name)}: {item.reason}", file=sys.stderr)
        print(f"{len(left_out)} of {len(tracks)} tracks were left out: {file}", file=sys.stderr)
    if not outcome.tracks:
        if not outcome.left_out:
            print(f"{out}: finished already, {len(tracks)} tracks")
        return
    rate = outcome.seconds / outcome.wall
    print(
        f"{out}: {outcome.tracks} tracks, {outcome.seconds / 3600:.2f} h of audio in "
        f"{outcome.wall:.0f} s: {rate:.1f} audio-s/s"
    )
