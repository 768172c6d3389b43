#!/usr/bin/env python
"""Evaluate an encoder on audio tasks of mteb (MAEB).

    pip install -e '.[mteb]'
    python examples/benchmarks/mteb_model.py CHECKPOINT BeijingOpera GTZANGenre --out results

A checkpoint is what `music_ssl_fairseq.load` takes. `mteb.evaluate(Encoder(FILE), ...)` in Python.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

try:
    import mteb
except ModuleNotFoundError:
    if __name__ != "__main__":
        raise
    sys.exit("error: mteb is not installed\npip install -e '.[mteb]'")
import numpy as np
import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction

import music_ssl_fairseq
from music_ssl_fairseq.cli import BEGINS, exit_status
from music_ssl_fairseq.compat import torchaudio_models
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.upstream.model import too_short


class Encoder(AbsEncoder):
    """One vector per clip: the mean over time of a layer, or of all Transformer layers.

    Args:
        checkpoint: what is evaluated.
        layer: its number, -1 for the last; None for the mean of all but layer 0.
        device: by default a GPU, if there is one.

    Results are stored by the encoder's name and fingerprint, and by the layer.
    """

    def __init__(self, checkpoint: str, layer: int | None = None, device: str | None = None):
        torchaudio_models()  # imported later by transformers, it would refuse torch 2.15
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = music_ssl_fairseq.load(checkpoint, device)
        self.layer = layer
        name = f"music_ssl_fairseq/{self.encoder.name}"
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "loader": None,
                "name": name if layer is None else f"{name}-layer-{layer}",
                "revision": self.encoder.fingerprint[:16],
                "modalities": ["audio"],
                "embed_dim": self.encoder.dimension,
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Return `[clips, D]` float32 of batches with `audio`; clips keep their own length."""
        found = [self._vector(clip) for batch in inputs for clip in batch["audio"]]
        return np.concatenate(found)

    def _vector(self, clip: Any) -> np.ndarray:
        waveform = np.asarray(clip["array"], np.float32)
        rate, model = int(clip["sampling_rate"]), self.encoder
        shortest = -(-model.grid.window * rate // model.sample_rate)
        if waveform.shape[-1] < shortest:  # clips of real tasks may be clicks
            print(f"padded: {too_short(waveform.shape[-1], rate, model.grid)}", file=sys.stderr)
            waveform = np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(0, shortest)])
        return model.embed(waveform, rate, self.layer, channels="first")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a file, a run's folder, a Hugging Face folder or hf:")
    parser.add_argument("tasks", nargs="+", help="names of mteb's tasks, such as GTZANGenre")
    parser.add_argument("--layer", type=int, help="default: the mean of the Transformer layers")
    parser.add_argument("--device", help="default: cuda if there is a GPU")
    parser.add_argument("--out", type=Path, default=Path("mteb"), help="folder of the results")
    return parser


def run(checkpoint: str, tasks: list[str], layer: int | None, device: str | None, out: Path):
    """Evaluate, store the results, and print the main scores."""
    try:
        chosen = mteb.get_tasks(tasks=tasks)
    except KeyError as error:
        raise InputError(f"mteb has no such task: {error}") from None
    encoder = Encoder(checkpoint, layer, device)
    results = mteb.evaluate(encoder, chosen, cache=mteb.ResultCache(out))
    for result in results.task_results:
        print(f"{result.task_name}: {result.get_score():.4f}")


if __name__ == "__main__":
    arguments = get_parser().parse_args()
    sys.exit(exit_status(lambda: run(**vars(arguments)), arguments.out, BEGINS))
