"""Write a page about a set of labels: how units are used, and what they sound like."""

from pathlib import Path
from typing import Any

import numpy as np

from music_ssl_fairseq.data.label_store import LabelStore
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.frames import amount, label_hop
from music_ssl_fairseq.label_report.profiles import describe_units, mutual_information, quantiles
from music_ssl_fairseq.label_report.samples import ReportSamples, draw_samples
from music_ssl_fairseq.pages.figures import COLOURS, GREY, figure, new_figure
from music_ssl_fairseq.pages.page import Cell, Page, facts, paragraph, table

_LOUDNESS_STEPS = 12


def write_report(
    folder: Path,
    metadata: dict[str, Any],
    centroids: np.ndarray,
    splits: dict[str, Manifest],
    workers: int,
) -> str:
    """Write `report.html` about centroids `[k, dimension]`; return its name and size."""
    stores = {split: LabelStore(folder / f"{split}.km") for split in splits}
    counts = {split: np.zeros(metadata["k"], np.int64) for split in splits}  # labels of each unit
    for split, store in stores.items():
        for track in range(len(store)):
            counts[split] += np.bincount(store.units(track), minlength=metadata["k"])
    rate, seed = metadata["label_rate"], metadata["seed"]
    train = splits["train"]
    hop = label_hop(rate)
    samples = draw_samples(train, stores["train"], counts["train"], hop, seed, workers)
    described = describe_units(samples, counts, centroids, train, rate, seed)
    title = f"{metadata['k']} units of {metadata['features']}"
    page = Page(title, _recipe(metadata), __package__, "report.js")
    use = _use_of_units(metadata, "train")
    use = {"tracks of train": use.pop("tracks"), **use}
    page.add("Units", facts(use), page.part("report.html"))
    page.add("Use", _usage_table(metadata, list(splits)), _draw_usage(counts))
    page.add("What units tell about the music", _information(samples, rate))
    if metadata["inertia_curve"]:
        page.add("Inertia", _draw_inertia(metadata))
    page.give("about", described)
    page.give_sounds(samples.sounds)
    return page.write(folder / "report.html")


def _recipe(metadata: dict[str, Any]) -> str:
    model = f", layer {metadata['layer']}" if metadata["layer"] is not None else ""
    fitted = f"fitted on {metadata['frames_fitted']:,} frames by {metadata['fitted_by']}"
    return (
        f"{metadata['features']}{model}, {metadata['dimension']} values per frame, "
        f"{metadata['label_rate']:g} labels per second; {fitted}, seed {metadata['seed']}."
    )


def _use_of_units(metadata: dict[str, Any], split: str) -> dict[str, str]:
    """Format how a split uses the units."""
    record, k, rate = metadata["splits"][split], metadata["k"], metadata["label_rate"]
    run = record["mean_run_length"]
    return {
        "tracks": f"{record['tracks']:,}",
        "labels": f"{record['labels']:,} ({amount(record['labels'] / rate / 3600)})",
        "units used": f"{record['used_clusters']} of {k}",
        "dead clusters": f"{k - record['used_clusters']}",
        "perplexity": f"{record['perplexity']:.1f}",
        "most frequent unit": f"{100 * record['majority_share']:.2f} %",
        "mean run length": f"{run:.2f} frames ({1000 * run / rate:.0f} ms)",
    }


def _usage_table(metadata: dict[str, Any], splits: list[str]) -> str:
    """Format how units are used, one column per split."""
    uses = [_use_of_units(metadata, split) for split in splits]
    note = (
        "Perplexity is how many equally frequent units would carry as much; dead clusters are "
        "units that never occur. A model that always guesses the most frequent unit is right as "
        "often as its share says."
    )
    return table(["", *splits], [[name, *(use[name] for use in uses)] for name in uses[0]], note)


def _information(samples: ReportSamples, label_rate: float) -> str:
    units = samples.units[samples.drawn]
    classes = samples.pitch_class[samples.drawn]
    loudness = samples.loudness[samples.drawn]
    pitched = classes >= 0
    about = {
        "pitch class (strongest of chroma)": mutual_information(units[pitched], classes[pitched]),
        f"loudness ({_LOUDNESS_STEPS} equally full steps)": mutual_information(
            units, quantiles(loudness, _LOUDNESS_STEPS)
        ),
    }
    rows: list[list[str | Cell]] = []
    for name, (bits, entropy) in about.items():
        share = 100 * bits / entropy if entropy > 0 else 0.0
        figures = ((f"{bits:.3f}", bits), (f"{entropy:.2f}", entropy), (f"{share:.1f}", share))
        rows.append([name, *(Cell(*each) for each in figures)])
    header = ["", "mutual information, bits", "entropy, bits", "share of entropy, %"]
    return table(header, rows) + paragraph(
        f"From excerpts of {len(units) / label_rate / 60:.1f} minutes of train, of which "
        f"{100 * np.mean(pitched):.0f} % are loud enough to have a pitch; corrected for chance "
        "(Miller-Madow).",
        "note",
    )


def _draw_inertia(metadata: dict[str, Any]) -> str:
    """Draw the mean squared distance of a frame to its centroid before each iteration."""
    drawn = new_figure(8, 3)
    for axes, key, title in zip(
        drawn.subplots(1, 2),
        ("coarse_inertia_curve", "inertia_curve"),
        ("on a part of the frames", "then on all of them"),
        strict=True,
    ):
        curve = metadata[key]
        axes.plot(range(1, len(curve) + 1), curve, "o-", markersize=3, color=COLOURS[0])
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="iteration", ylabel="inertia per frame\n(squared feature units)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    return figure(
        drawn,
        "inertia of each iteration",
        "Mean squared distance of a frame to its centroid, before each iteration; "
        f"before the last one {metadata['train_inertia']:.6g}.",
    )


def _draw_usage(counts: dict[str, np.ndarray]) -> str:
    """Draw the share of each unit, the most frequent first, for each split."""
    drawn = new_figure(8, 3)
    axes = drawn.subplots()
    for (split, count), colour in zip(counts.items(), COLOURS, strict=False):
        shares = np.sort(count)[::-1] / max(1, count.sum())
        used = shares[shares > 0]
        axes.semilogy(np.arange(1, len(used) + 1), 100 * used, color=colour, label=split)
    axes.axhline(100 / len(shares), color=GREY, linestyle=":", label="equal use")
    axes.set(xlabel="rank of the unit, most frequent first", ylabel="share of all labels, %")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure(drawn, "share of each unit", "A line that ends early has units that never occur.")
