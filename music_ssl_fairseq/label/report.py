"""Write a page about a set of labels: how units are used, and what they tell about the music."""

from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.frames import label_hop
from music_ssl_fairseq.label import report_pictures as pictures
from music_ssl_fairseq.label.information import mutual_information, quantiles
from music_ssl_fairseq.label.report_samples import ReportSamples, draw_samples
from music_ssl_fairseq.runtime.files import atomic_path

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_LOUDNESS_STEPS = 12


def write_report(
    folder: Path, metadata: dict[str, Any], splits: dict[str, Manifest], workers: int
) -> Path:
    """Write `report/report.md` in the folder of labels, and the pictures it shows (matplotlib)."""
    stores = {split: LabelStore(folder / f"{split}.km") for split in splits}
    counts = {split: _count_units(store, metadata["k"]) for split, store in stores.items()}
    hop = label_hop(metadata["label_rate"])
    samples = draw_samples(splits["train"], stores["train"], hop, metadata["seed"], workers)
    out = folder / "report"
    units = pictures.choose_units(samples, metadata["k"])
    if metadata["inertia_curve"]:
        pictures.save(pictures.draw_inertia(metadata), out / "inertia.png")
    pictures.save(pictures.draw_usage(counts), out / "usage.png")
    if units:
        drawn = pictures.draw_units(samples, units, metadata["label_rate"])
        pictures.save(drawn, out / "units.png")
    page = out / "report.md"
    with atomic_path(page) as temporary:
        temporary.write_text(_page(metadata, list(splits), samples, units), encoding="utf-8")
    return page


def _count_units(store: LabelStore, k: int) -> np.ndarray:
    """Return `[k]` labels of each unit."""
    counts = np.zeros(k, np.int64)
    for track in range(len(store)):
        counts += np.bincount(store.units(track), minlength=k)
    return counts


def _page(
    metadata: dict[str, Any], splits: list[str], samples: ReportSamples, units: list[int]
) -> str:
    sections = [
        f"# {metadata['k']} units of {metadata['features']}",
        _recipe(metadata),
        _inertia(metadata),
        "## Use of the units\n\n" + _usage_table(metadata, splits),
        "![share of each unit](usage.png)",
        "## What units tell about the music\n\n" + _information(samples, metadata["label_rate"]),
        _examples(samples, units),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _recipe(metadata: dict[str, Any]) -> str:
    model = f", layer {metadata['layer']}" if metadata["layer"] is not None else ""
    fitted = f"fitted on {metadata['frames_fitted']:,} frames by {metadata['fitted_by']}"
    return (
        f"{metadata['features']}{model}, {metadata['dimension']} values per frame, "
        f"{metadata['label_rate']:g} labels per second; {fitted}, seed {metadata['seed']}."
    )


def _inertia(metadata: dict[str, Any]) -> str:
    if not metadata["inertia_curve"]:
        return ""
    return (
        f"## Inertia\n\nMean squared distance of a frame to its centroid, before each iteration; "
        f"before the last one {metadata['train_inertia']:.6g}.\n\n"
        "![inertia of each iteration](inertia.png)"
    )


def _usage_table(metadata: dict[str, Any], splits: list[str]) -> str:
    """Return a Markdown table, one column per split."""
    records, k, rate = (
        [metadata["splits"][s] for s in splits],
        metadata["k"],
        metadata["label_rate"],
    )
    rows = {
        "tracks": [f"{r['tracks']:,}" for r in records],
        "labels": [f"{r['labels']:,} ({r['labels'] / rate / 3600:.2f} h)" for r in records],
        "units used": [f"{r['used_clusters']} of {k}" for r in records],
        "dead clusters": [f"{k - r['used_clusters']}" for r in records],
        "perplexity": [f"{r['perplexity']:.1f}" for r in records],
        "most frequent unit": [f"{100 * r['majority_share']:.2f} %" for r in records],
        "mean run length": [
            f"{r['mean_run_length']:.2f} frames ({1000 * r['mean_run_length'] / rate:.0f} ms)"
            for r in records
        ],
    }
    lines = ["| | " + " | ".join(splits) + " |", "|---" * (1 + len(splits)) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    note = (
        "Perplexity is how many equally frequent units would carry as much; dead clusters are "
        "units that never occur. A model that always guesses the most frequent unit is right as "
        "often as its share says."
    )
    return "\n".join(lines) + "\n\n" + note


def _information(samples: ReportSamples, label_rate: float) -> str:
    pitched = samples.pitch_class >= 0
    about = {
        "pitch class (strongest of chroma)": mutual_information(
            samples.units[pitched], samples.pitch_class[pitched]
        ),
        f"loudness ({_LOUDNESS_STEPS} equally full steps)": mutual_information(
            samples.units, quantiles(samples.loudness, _LOUDNESS_STEPS)
        ),
    }
    lines = ["| | mutual information | of |", "|---|---|---|"]
    lines += [
        f"| {name} | {found.bits:.3f} bits "
        f"| {100 * found.share:.1f} % of {found.entropy:.2f} bits |"
        for name, found in about.items()
    ]
    minutes = len(samples.units) / label_rate / 60
    note = (
        f"From excerpts of {minutes:.1f} minutes of train, of which "
        f"{100 * np.mean(pitched):.0f} % are loud enough to have a pitch; corrected for chance "
        "(Miller-Madow)."
    )
    return "\n".join(lines) + "\n\n" + note


def _examples(samples: ReportSamples, units: list[int]) -> str:
    if not units:
        return ""
    lines = [
        "| unit | share of labels | loudness | most frequent pitch class |",
        "|---|---|---|---|",
    ]
    for unit in units:
        here = samples.units == unit
        classes = samples.pitch_class[here]
        classes = classes[classes >= 0]
        pitch = "none"
        if len(classes):
            counts = np.bincount(classes, minlength=12)
            most_frequent = PITCH_CLASSES[counts.argmax()]
            pitch = f"{most_frequent} ({100 * counts.max() / len(classes):.0f} %)"
        loudness = np.median(samples.loudness[here])
        lines.append(f"| {unit} | {100 * here.mean():.3f} % | {loudness:.0f} dB | {pitch} |")
    return (
        "## What some units look like\n\nLog-mel spectrograms, 20 Hz to 8 kHz upwards, 0.3 s each, "
        "around the middles of a unit's longest runs, from different excerpts where possible.\n\n"
        "![log-mel examples of units](units.png)\n\n" + "\n".join(lines)
    )
