"""Crops per second of our dataset and of fairseq's, on the same files in the same process.

    python -m tests.benchmarks.read_audio

One 16 kHz mono file of five minutes in each format, crops of 5 s, normalised, in batches of 8, no
data-loading workers, one thread, files in the page cache. Without labels the opponent is fairseq's
`FileAudioDataset` (what its data2vec trains on), with labels of 100 Hz it is `HubertDataset` with
the dictionary lookup of its HuBERT task. Each makes batches that are ready for the model; where
the time goes is that fairseq decodes and normalises the whole file, and encodes its whole line of
labels, for every crop.
"""

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

SAMPLE_RATE = 16_000
CROP_SECONDS = 5
BATCH = 8
K = 500
GOALS = {".wav": 20, ".flac": 20, ".ogg": 15}


def make_corpus(folder: Path, suffix: str, seconds: float) -> None:
    """Write one file, and list it once per crop of a batch: fairseq takes one crop per track."""
    from music_ssl_fairseq.data.manifest import write_manifest
    from tests.audio_files import write_tone

    write_tone(folder / f"music{suffix}", seconds)
    num_samples = round(seconds * SAMPLE_RATE)
    write_manifest(folder / "train.tsv", folder, [(f"music{suffix}", num_samples)] * BATCH)
    units = np.random.default_rng(0).integers(0, K, 1 + (num_samples - 400) // 160)
    (folder / "train.km").write_text((" ".join(map(str, units)) + "\n") * BATCH)
    (folder / "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(K)))


def our_batches(folder: Path, with_labels: bool) -> Callable[[int], dict]:
    """The n-th batch of our dataset."""
    from omegaconf import OmegaConf

    from music_ssl_fairseq.data.crop_config import CropConfig
    from music_ssl_fairseq.data.label_store import LabelStore
    from music_ssl_fairseq.data.manifest import Manifest
    from music_ssl_fairseq.data.pretraining_dataset import PretrainingDataset
    from music_ssl_fairseq.data.units import LabelSet, UnitDictionary
    from music_ssl_fairseq.frames import DEFAULT_CONV_LAYERS

    if with_labels:
        units = UnitDictionary(folder / "dict.km.txt")
        labels_of_set = LabelSet(LabelStore(folder / "train.km"), units, 100)
    of_model = {"mask_prob": 0, "mask_length": 10, "conv_feature_layers": DEFAULT_CONV_LAYERS}
    data = PretrainingDataset(
        Manifest(folder / "train.tsv"),
        OmegaConf.structured(CropConfig(CROP_SECONDS, 1, normalize=True, seed=0, **of_model)),
        training=True,
        labels=[labels_of_set] if with_labels else None,
    )
    data.set_epoch(1)
    order = data.ordered_indices()

    def batch(number: int) -> dict:
        chosen = order[np.arange(number * BATCH, (number + 1) * BATCH) % len(order)]
        return data.collater([data[index] for index in chosen])

    return batch


def fairseq_batches(folder: Path, with_labels: bool) -> Callable[[int], dict]:
    """The n-th batch of fairseq's dataset."""
    from fairseq.data import Dictionary, FileAudioDataset, HubertDataset

    if with_labels:
        dictionary = Dictionary.load(str(folder / "dict.km.txt"))

        def encode(line: str):
            return dictionary.encode_line(line, append_eos=False, add_if_not_exist=False)

        data = HubertDataset(
            str(folder / "train.tsv"),
            sample_rate=SAMPLE_RATE,
            label_paths=[str(folder / "train.km")],
            label_rates=[100.0],
            pad_list=[dictionary.pad()],
            eos_list=[dictionary.eos()],
            label_processors=[encode],
            max_sample_size=CROP_SECONDS * SAMPLE_RATE,
            normalize=True,
            random_crop=True,
            single_target=True,
        )
    else:
        data = FileAudioDataset(
            str(folder / "train.tsv"),
            sample_rate=SAMPLE_RATE,
            max_sample_size=CROP_SECONDS * SAMPLE_RATE,
            normalize=True,
        )
    return lambda number: data.collater([data[index] for index in range(BATCH)])


def crops_per_second(batch: Callable[[int], dict], seconds: float) -> float:
    """Measured over whole batches, for about `seconds`, after one to warm up."""
    shape = batch(0)["net_input"]["source"].shape
    assert shape == (BATCH, CROP_SECONDS * SAMPLE_RATE), shape
    number = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        number += 1
        batch(number)
    return number * BATCH / (time.perf_counter() - begin)


def measure(suffix: str, with_labels: bool, minutes: float, seconds: float) -> tuple[float, float]:
    """Crops per second: ours and fairseq's."""
    with tempfile.TemporaryDirectory() as name:
        make_corpus(Path(name), suffix, 60 * minutes)
        ours = crops_per_second(our_batches(Path(name), with_labels), seconds)
        theirs = crops_per_second(fairseq_batches(Path(name), with_labels), seconds)
    return ours, theirs


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.read_audio",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=5, help="length of the files (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=5,
        help="time to measure each of the twelve figures for (default: %(default)s)",
    )
    return parser


def run(minutes: float, seconds: float) -> bool:
    """Print the table; whether all goals were reached."""
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")  # of torch, about how fairseq indexes
    print(f"{minutes:g}-minute files, {CROP_SECONDS} s crops, crops per second\n")
    print("| format | labels | ours | fairseq | ratio | goal |")
    print("|---|---|---|---|---|---|")
    reached = True
    for with_labels in (False, True):
        for suffix, goal in GOALS.items():
            ours, theirs = measure(suffix, with_labels, minutes, seconds)
            reached &= ours >= goal * theirs
            print(
                f"| {suffix[1:]} | {'100 Hz' if with_labels else 'none'} | {ours:.0f} "
                f"| {theirs:.2f} | {ours / theirs:.0f} | {goal} |",
                flush=True,
            )
    return reached


if __name__ == "__main__":
    sys.exit(0 if run(**vars(get_parser().parse_args())) else 1)
