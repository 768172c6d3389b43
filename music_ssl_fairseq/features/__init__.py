"""Front ends: a waveform becomes `[frames, dimension]` float32 at a stated frame rate.

A front end is looked up by name (`front_end("mfcc")`), and its module imported only then. What all
share is `FrontEnd`; `features.track` applies one to a file, however long.
"""

from importlib import import_module
from typing import Protocol

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import FrameGrid

FRONT_ENDS = {"mfcc": ("music_ssl_fairseq.features.mfcc", "Mfcc")}
"""Name on the command line: (module, class)."""


class FrontEnd(Protocol):
    """What turns 16 kHz audio into features.

    Attributes:
        grid: which samples each frame covers.
        frame_rate: frames a second; the `label_rate` of labels made from them.
        dimension: values a frame.
        context: frames on either side whose audio a frame's values depend on. A part of a track
            computed with that many more frames around it equals the same part of the whole track.
    """

    grid: FrameGrid
    frame_rate: float
    dimension: int
    context: int

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """`[T]` float32 at 16 kHz to `[grid.num_frames(T), dimension]` float32."""
        ...


def front_end(name: str) -> FrontEnd:
    """Make the front end of that name.

    Raises:
        InputError: if there is none.
    """
    if name not in FRONT_ENDS:
        raise InputError(f"no features called {name!r}; there are: {', '.join(FRONT_ENDS)}")
    module, attribute = FRONT_ENDS[name]
    return getattr(import_module(module), attribute)()
