"""All that decides the centroids of a set of labels."""

import dataclasses
import hashlib
import importlib.metadata

from music_ssl_fairseq.label.kmeans import Options

ALGORITHMS = ("lloyd", "minibatch")
MAX_FRAMES = 1_000_000
"""Frames that K-means is fitted on, unless the command line says otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Options):
    """Settings of a set of labels, K-means' included. Equal settings give equal labels."""

    features: str
    max_frames: int  # frames fitted on at most
    # SHA-256 of the manifest that frames are sampled from: its root, names, lengths and their order
    train_manifest: str
    checkpoint: str | None = None  # fingerprint of the model of deep features
    layer: int | None = None  # of that model
    minibatch: int | None = None  # frames held at once, None for all
    # SHA-256 of the file that centroids were taken from, if they were not fitted; `given_centroids`
    # in metadata.json
    external_centroids: str | None = None
    algorithm: str = "lloyd"  # `lloyd` (`kmeans.fit`), or `minibatch` (`kmeans.fit_as_fairseq`)

    @property
    def settings(self) -> dict[str, object]:
        """The fields as metadata.json has them."""
        fields = dataclasses.asdict(self)
        fields["given_centroids"] = fields.pop("external_centroids")
        return fields

    @property
    def identity(self) -> str:
        """Twelve hex digits that differ between recipes, and between versions of this package,
        which may cut the work into other blocks."""
        both = f"{self} {version('music_ssl_fairseq')}"
        return hashlib.sha256(both.encode()).hexdigest()[:12]


WORDS = {
    "train_manifest": "train manifest",
    "checkpoint": "checkpoint",
    "given_centroids": "file of centroids, or none",
}
"""Setting -> its description, for values that say nothing to a reader."""


def version(distribution: str) -> str:
    """Return an installed distribution's version."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"
