"""Features of some frames of a file, as workers compute them."""

import numpy as np

from music_ssl_fairseq.features import FrontEnd
from music_ssl_fairseq.features.chunk_features import Track, read_chunk


def track_features(front: FrontEnd, track: Track, first: int, last: int) -> np.ndarray:
    """Return frames `[first, last)` of a track: `[last - first, dimension]` float32."""
    return front.features_of([read_chunk(front, track, first, last)])[0]
