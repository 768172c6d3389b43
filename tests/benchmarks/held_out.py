"""A fixed held-out set for `time_to_quality`: crops cut once, with their labels and their masks.

Both programs validate on the same files. Ours draws the masks of validation from (task.seed, 0,
index). fairseq draws its masks anew each time, fewer in larger batches, so the reference gets ours:
a plugin, which fairseq loads as `common.user_dir`, recognises each crop by its samples.
"""

import json
import os
from pathlib import Path

import numpy as np
import soundfile

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.manifest import Manifest
from music_ssl_fairseq.data.run_identity import digest_of
from music_ssl_fairseq.frames import SAMPLE_RATE, label_hop

SEED = 1
"""`task.seed` of all runs: crops and masks."""

_PLUGIN = """import importlib.util
from fairseq.models.hubert import hubert
spec = importlib.util.spec_from_file_location("held_out_masks", {file!r})
held_out = importlib.util.module_from_spec(spec)
spec.loader.exec_module(held_out)
held_out.fix_masks(hubert, {folder!r})
"""


def make_corpus(
    manifests: Path, labels: Path | None, folder: Path, seconds: float, crops: int
) -> None:
    """Write train.tsv, a valid.tsv of at most `crops` crops, and their labels, into a folder.

    Crops lie one after the other in the tracks of `manifests/valid.tsv`; of too many, evenly spread
    ones are taken. Tracks shorter than a crop are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(manifests / "valid.tsv")
    length = round(seconds * SAMPLE_RATE)
    places = [
        (track, start)
        for track, samples in enumerate(manifest.num_samples.tolist())
        for start in range(0, samples - length + 1, length)
    ]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(crops, len(places))).round().astype(int))
    places = [places[i] for i in chosen]
    (folder / "held_out").mkdir(exist_ok=True)
    rows = []
    for number, (track, start) in enumerate(places):
        waveform = audio.read(manifest.path(track), start, length)
        samples = np.clip(np.round(waveform * 32768), -32768, 32767).astype(np.int16)
        soundfile.write(folder / "held_out" / f"{number}.flac", samples, SAMPLE_RATE)
        rows.append(f"{number}.flac\t{length}\n")
    (folder / "valid.tsv").write_text(f"{folder / 'held_out'}\n{''.join(rows)}")
    (folder / "train.tsv").write_bytes((manifests / "train.tsv").read_bytes())
    if labels is not None:
        _cut_labels(labels, folder, places, length)


def _cut_labels(labels: Path, folder: Path, places: list[tuple[int, int]], length: int) -> None:
    metadata = json.loads((labels / "metadata.json").read_text())
    metadata.get("splits", {}).pop("valid", None)  # it names the tracks, and crops have other names
    (folder / "metadata.json").write_text(json.dumps(metadata))
    for file in labels.iterdir():
        if not file.name.startswith("valid.") and file.is_file() and file.suffix != ".json":
            (folder / file.name).symlink_to(file.resolve())
    hop = label_hop(metadata["label_rate"])
    lines = (labels / "valid.km").read_text().splitlines()
    with (folder / "valid.km").open("w") as out:
        for track, start in places:
            units = lines[track].split()[start // hop : (start + length) // hop]
            out.write(" ".join(units) + "\n")


def digest(folder: Path) -> str:
    """Describe the held-out crops: their number, and a digest of their samples."""
    files = sorted((folder / "held_out").iterdir(), key=lambda file: int(file.stem))
    samples = [soundfile.read(file, dtype="int16")[0].tobytes() for file in files]
    return f"{len(files)} [{digest_of(samples)}]"


def write_plugin(folder: Path) -> Path:
    """Write the `user_dir` with which stock fairseq validates with our masks."""
    plugin = folder / "held_out_plugin"
    plugin.mkdir(exist_ok=True)
    text = _PLUGIN.format(file=os.path.abspath(__file__), folder=str(folder))
    (plugin / "__init__.py").write_text(text)
    return plugin


def fix_masks(module, folder: str) -> None:
    """Let fairseq's HuBERT use our masks on held-out crops; in training nothing changes."""
    from music_ssl_fairseq.data.crops import MASKS, generator
    from music_ssl_fairseq.data.masks import SpanMask

    numbers = {}
    for file in Path(folder, "held_out").iterdir():
        samples, _ = soundfile.read(file, dtype="int16")
        numbers[samples.tobytes()] = int(file.stem)
    forward, draw, rows = module.HubertModel.forward, module.compute_mask_indices, []

    def noting(model, source, *args, **kwargs):
        rows.clear()
        if not model.training:
            scaled = (source.float() * 32768).round().short().cpu().numpy()
            rows.extend(numbers[row.tobytes()] for row in scaled)
        return forward(model, source, *args, **kwargs)

    def masks(shape, padding_mask, prob, length, *args, min_masks=0, **kwargs):
        if not rows:
            return draw(shape, padding_mask, prob, length, *args, min_masks=min_masks, **kwargs)
        span = SpanMask(prob, length, min_masks)
        return np.stack([span.mask(shape[1], generator(SEED, 0, row, MASKS)) for row in rows])

    module.HubertModel.forward, module.compute_mask_indices = noting, masks
