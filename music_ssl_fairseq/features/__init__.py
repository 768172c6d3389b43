"""Front ends: a waveform becomes `[frames, dimension]` float32 at a stated frame rate.

`Features` says which: a name and, for a model's layer, its checkpoint. `front_end` makes what it
names, and imports that module only then. `features.track` applies one to a file, however long.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Protocol

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import FrameGrid

FRONT_ENDS = {"mfcc": ("music_ssl_fairseq.features.mfcc", "Mfcc")}
"""Name on the command line: (module, class)."""

DEEP = "deep"
"""The name of a model's layer, which needs a checkpoint as well."""


class FrontEnd(Protocol):
    """What turns 16 kHz audio into features.

    Attributes:
        grid: which samples each frame covers.
        frame_rate: frames a second; the `label_rate` of labels made from them.
        dimension: values a frame.
        context: frames on either side whose audio a frame's values depend on. A part of a track
            computed with that many more frames around it equals the same part of the whole track.
        fingerprint: of the checkpoint whose layer this is, None for all other features.
    """

    grid: FrameGrid
    frame_rate: float
    dimension: int
    context: int
    fingerprint: str | None

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """`[T]` float32 at 16 kHz to `[grid.num_frames(T), dimension]` float32."""
        ...


@dataclass(frozen=True)
class Features:
    """Which features: all that a process needs to make their front end.

    Attributes:
        name: of `FRONT_ENDS`, several joined by `+`, or `deep`.
        checkpoint: for `deep`, the model's file or folder.
        layer: for `deep`, 0 for the projected extractor output, then the Transformer's layers.
        device: where `deep` runs, as torch names it. Not part of what the features are.

    Raises:
        InputError: if there are no such features, or `deep` lacks what it needs.
    """

    name: str = "mfcc"
    checkpoint: str | None = None
    layer: int | None = None
    device: str = "cpu"

    def __post_init__(self):
        if self.name not in FRONT_ENDS:
            raise InputError(
                f"no features called {self.name!r}; there are: {', '.join(FRONT_ENDS)}"
            )


@lru_cache(maxsize=1)
def front_end(features: Features | str) -> FrontEnd:
    """Make a front end, or take the one made before, as a checkpoint takes seconds to load.

    Raises:
        InputError: if there are no such features.
    """
    if isinstance(features, str):
        features = Features(features)
    module, attribute = FRONT_ENDS[features.name]
    return getattr(import_module(module), attribute)()
