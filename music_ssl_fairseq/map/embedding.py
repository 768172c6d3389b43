"""Compute one vector per song, and keep it for the next call."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from music_ssl_fairseq import audio
from music_ssl_fairseq.data.left_out import LeftOut
from music_ssl_fairseq.errors import AudioError, InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.map.song_page import middle_of
from music_ssl_fairseq.probing.features.cache import Clip, FeatureCache, clip_at
from music_ssl_fairseq.probing.features.source import EncoderSource, open_source
from music_ssl_fairseq.runtime.machine import choose_device
from music_ssl_fairseq.runtime.user_command import with_options

_SAVE_SECONDS = 20.0
_CACHE_BYTES = 2**40


class Embedder:
    """A frozen model, one of its layers, and how much of a song it is given.

    Raises InputError if it cannot be opened or lacks the layer, or there is no GPU.

    Args:
        upstream: what `open_source` takes.
        layer: of an encoder; None for the mean of the Transformer's layers.
        seconds: from the middle of a song; 0 for all of it.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
    """

    def __init__(self, upstream: str, layer: int | None, seconds: float, device: str):
        self.device = choose_device(device)  # where the model runs
        self._source = open_source(upstream, self.device)
        self._layers = [layer] if layer is not None else None
        self._seconds = seconds
        what = ""
        if isinstance(self._source, EncoderSource):
            encoder = self._source.encoder
            if layer is not None:
                encoder.check_layers(layer)
            what = f", layer {layer}" if layer is not None else ", mean of the Transformer layers"
        elif layer is not None:
            message = f"--layer {layer}: {upstream} is a front end, which has no layers"
            raise InputError(message, with_options({"--layer": None}))
        part = f", middle {seconds:g} s of each song" if seconds else ""
        self.description = f"{self._source.name}{what}{part}"  # one sentence for people

    def embed(
        self, folder: Path, names: Sequence[str], cache_dir: Path
    ) -> tuple[dict[str, np.ndarray], list[LeftOut]]:
        """Return the vectors by name, `[D]` float32 each, and the songs that cannot be read.

        An interrupted call leaves in the cache what it has computed.
        """
        identity = {
            "fingerprint": self._source.fingerprint,
            "precision": self._source.precision,
            "kind": "song",
            "layers": self._layers,
            "seconds": self._seconds,
        }
        cache = FeatureCache(cache_dir, identity, _CACHE_BYTES, self._source.name)
        found: dict[str, np.ndarray] = {}
        left_out = []
        saved = time.monotonic()
        try:
            for name in tqdm(names, desc="embedding", unit=" songs"):
                try:
                    path = folder / name
                    _, start, stop = middle_of(path, self._seconds or math.inf)
                    song = clip_at(str(path), start, stop)
                    if song.key in cache:
                        found[name] = cache.vectors(song.key)[0, 0]
                        continue
                    found[name] = self._vector(song)
                except AudioError as error:
                    left_out.append(LeftOut(name, error.reason))
                    continue
                cache.add(song.key, found[name][None, None])
                if time.monotonic() - saved > _SAVE_SECONDS:
                    cache.flush()
                    saved = time.monotonic()
        finally:
            cache.flush()
        return found, left_out

    def _vector(self, song: Clip) -> np.ndarray:
        waveform = audio.read(song.path, song.start, song.stop - song.start)
        if len(waveform) < self._source.grid.window:
            raise AudioError(song.path, "too short for one frame")
        if isinstance(self._source, EncoderSource):
            vector = self._source.encoder.embed(waveform, SAMPLE_RATE, self._layers)[0]
        else:
            vector = self._source.clip_features(waveform[None])[0, 0]
        if not np.isfinite(vector).all():
            raise AudioError(song.path, "its features are not finite")
        return vector
