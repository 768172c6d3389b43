"""Read centroids that were fitted elsewhere."""

from pathlib import Path

import numpy as np

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime import hub
from music_ssl_fairseq.runtime.npy import read_array
from music_ssl_fairseq.runtime.user_command import corrected

CENTROIDS = "centroids.npy"

_PICKLE = b"\x80"
_COMPRESSED = (b"\x78", b"\x1f\x8b", b"BZ", b"\xfd7zXZ", b"\x5d\x00", b"\x04\x22")


def centroids_file(given: Path) -> Path:
    """Return the file that `--centroids` names: itself, or that of a model on the hub (`hf:`).

    Raises InputError if the model cannot be fetched, or has no centroids.
    """
    if not hub.is_name(given):
        return given
    file = hub.snapshot(given) / hub.UNITS / CENTROIDS
    if not file.is_file():
        raise InputError(f"{given}: no {hub.UNITS}/{CENTROIDS} beside the model")
    return file


def load_centroids(file: Path) -> np.ndarray:
    """Read `[k, D]` float32 from a .npy file.

    What fairseq's `learn_kmeans.py` writes is a pickle of a scikit-learn model. Opening it runs
    whatever code it holds, so it is not opened here: the message says how its owner converts it.

    Raises InputError if it is missing, a pickle, or not an array of finite numbers of that form.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file of centroids", corrected(file))
    with file.open("rb") as handle:
        beginning = handle.read(8)
    if beginning.startswith((_PICKLE, *_COMPRESSED)):
        raise InputError(
            f"{file}: a pickle, as fairseq's learn_kmeans.py writes them, which can run any code "
            "when opened; if you trust it, convert it once and give the result: "
            f"python -c \"import joblib, numpy; model = joblib.load('{file}'); "
            f"numpy.save('centroids.npy', model.cluster_centers_)\""
        )
    centroids = read_array(file, "give a file of centroids")
    if centroids.ndim != 2 or not len(centroids):
        raise InputError(f"{file}: expected [k, dimension] numbers, found {centroids.shape}")
    if centroids.dtype.kind in "fiu":
        with np.errstate(over="ignore"):
            found = np.array(centroids, np.float32, order="C")
        if np.isfinite(found).all():
            return found
    raise InputError(f"{file}: centroids must be finite numbers that float32 holds")
