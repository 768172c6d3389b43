"""Check before training that pseudo-labels belong to the audio and to their dictionary.

fairseq itself warns once per track, which drowns in its log, and silently turns unknown units into
UNK: a model then trains for days on nothing.
"""

import logging

import numpy as np

from music_ssl_fairseq.data.audio_identity import changed_audio, other_track
from music_ssl_fairseq.data.label_metadata import (
    label_again,
    read_metadata,
    require_unchanged,
    split_record,
)
from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.units import UnitDictionary
from music_ssl_fairseq.errors import InputError, one_line
from music_ssl_fairseq.frames import LENGTH_TOLERANCE, SAMPLE_RATE, label_hop, labels_fit
from music_ssl_fairseq.runtime.files import checksum
from music_ssl_fairseq.runtime.metadata import METADATA

logger = logging.getLogger(__name__)

MAX_CHECKED_BYTES = 64 << 20
"""Label files up to this size are checked whole, within seconds; larger ones in part."""

_USUAL_RATES = {100: ": were these MFCC labels?", 50: ": were these labels of deep features?"}
_USUAL_RATES |= {25: "", 200: ""}


def check_labels(
    manifest: Manifest,
    store: LabelStore,
    units: UnitDictionary,
    label_rate: float,
    whole: bool = False,
) -> None:
    """Refuse labels that do not fit, and name the likely mistake.

    Large files are checked in part, unless `whole`.

    Raises InputError if the tracks are others or in another order, labels end more than 0.1 s
    before or after their audio, the dictionary lacks units in use, or a file is not as the labeler
    wrote it.
    """
    _check_tracks(manifest, store)
    folder, split = store.file.parent, store.file.stem
    metadata = read_metadata(folder)
    record = split_record(metadata, folder, split)
    _check_rate(manifest, store, label_rate, record["unreadable"])
    _check_units(manifest, store, units, metadata.get("k", units.num_units))
    other = other_track(manifest.name, len(manifest), record.get("names"))
    if other is not None:
        raise InputError(
            f"{store.file}, line {other + 1}: not the labels of {_name(manifest, other)}, but of "
            f"another track: tracks were split or sorted anew, or renamed, since {store.file.name} "
            "was made; label again with their own options",
            label_again(folder, manifest.file.parent),
        )
    if whole or store.file.stat().st_size <= MAX_CHECKED_BYTES:
        require_unchanged(folder, record, manifest.file.parent)
    # Audio may have been replaced under the names and lengths of the manifest.
    noted = (
        record.get("audio") if record.get("manifest_sha256") == checksum(manifest.file) else None
    )
    if found := changed_audio(manifest, noted, f"{store.file} was"):
        logger.warning("%s", found)


def _check_tracks(manifest: Manifest, store: LabelStore) -> None:
    if len(store) != len(manifest):
        raise InputError(
            f"{store.file}: {len(store)} lines of labels, but {manifest.file} lists "
            f"{len(manifest)} tracks: the manifest was made again after the labels, or labelling "
            "did not finish; label again with their own options",
            label_again(store.file.parent, manifest.file.parent),
        )


def _check_rate(
    manifest: Manifest, store: LabelStore, label_rate: float, unreadable: list[int]
) -> None:
    fit = _fit(manifest, store, label_rate, unreadable)
    num_wrong = len(fit) - np.count_nonzero(fit)
    if not num_wrong:
        return
    first = int(np.argmin(fit))
    where = f"{num_wrong} of {len(fit)} tracks, first line {first + 1} ({_name(manifest, first)})"
    for rate, question in _USUAL_RATES.items():
        if rate != label_rate and _fit(manifest, store, rate, unreadable).mean() > 0.9:
            raise InputError(
                f"{store.file}: label_rate is {label_rate:g} but the labels fit {rate}{question} "
                f"(At {label_rate:g}, labels and audio differ in length in {where})"
            )
    raise InputError(
        f"{store.file}: labels and audio differ by more than {LENGTH_TOLERANCE:g} s in {where}: "
        f"{store.counts[first]} labels at label_rate {label_rate:g} are "
        f"{store.counts[first] / label_rate:.2f} s, the audio has "
        f"{manifest.num_samples[first] / SAMPLE_RATE:.2f} s; were audio or manifest changed after "
        "labelling? If so, label again with their own options",
        label_again(store.file.parent, manifest.file.parent),
    )


def _fit(
    manifest: Manifest, store: LabelStore, label_rate: float, unreadable: list[int]
) -> np.ndarray:
    fit = np.array(labels_fit(store.counts, manifest.num_samples, label_hop(label_rate)))
    # Tracks that the labeler could not read have an empty line and are not trained on.
    fit[[t for t in unreadable if 0 <= t < len(fit) and store.counts[t] == 0]] = True
    return fit


def _check_units(
    manifest: Manifest, store: LabelStore, units: UnitDictionary, stated: object
) -> None:
    if stated != units.num_units:
        raise InputError(
            f"{units.file}: lists {units.num_units} units, but {METADATA} beside it says "
            f"k={stated}: they are from different runs; label again with their own options",
            label_again(store.file.parent, manifest.file.parent),
        )
    tracks, size = np.arange(len(store)), store.file.stat().st_size
    if size > MAX_CHECKED_BYTES:  # a fixed sample of them
        number = max(1, len(tracks) * MAX_CHECKED_BYTES // size)
        tracks = np.sort(np.random.default_rng(0).choice(tracks, number, replace=False))
    num_labels = num_outside = largest = 0
    example = ""
    for track in tracks.tolist():
        labels = store.units(track)
        outside = units.outside(labels)
        num_labels += len(labels)
        largest = max(largest, int(labels.max(initial=0)))
        if outside.any():
            num_outside += int(np.count_nonzero(outside))
            example = example or (
                f"unit {labels[outside.argmax()]} in line {track + 1} ({_name(manifest, track)})"
            )
    if num_outside:
        share = f"{100 * num_outside / num_labels:.3g} % of the labels"
        fate = "every label" if num_outside == num_labels else share
        raise InputError(
            f"{units.file}: {fate} would become UNK: this dict has k={units.num_units}, labels in "
            f"{store.file} go up to {largest} (first {example}); take dict and labels from the "
            "same run, or label again with their own options",
            label_again(store.file.parent, manifest.file.parent),
        )


def _name(manifest: Manifest, track: int) -> str:
    return one_line(manifest.name(track), 255)
