"""Lay vectors out on a plane."""

import numpy as np

_MIN_TSNE_VECTORS = 10
_MAX_NEIGHBOURS = 30.0
_DIMENSIONS = 50  # that t-SNE starts from


def flat_map(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Place similar vectors near each other, by t-SNE; a few vectors by their principal components.

    From finite vectors `[n, D]` to `[n, 2]` from 0 to 1. Distances between far points mean little.
    """
    from sklearn.decomposition import PCA

    count = len(vectors)
    found = np.zeros((count, 2))
    if not np.ptp(vectors, axis=0).any():  # one vector, or equal ones
        return found + 0.5
    components = PCA(min(_DIMENSIONS, *vectors.shape), random_state=seed).fit_transform(vectors)
    if count >= _MIN_TSNE_VECTORS:
        from sklearn.manifold import TSNE

        neighbours = min(_MAX_NEIGHBOURS, count / 4)
        tsne = TSNE(perplexity=neighbours, init="pca", random_state=seed)
        found = tsne.fit_transform(components).astype(np.float64)
    else:
        found[:, : components.shape[1]] = components[:, :2]
    span = np.ptp(found, axis=0).max() or 1.0
    middle = (found.max(axis=0) + found.min(axis=0)) / 2
    return (found - middle) / span + 0.5


def nearest(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Euclidean distances and indices of each vector's nearest others, nearest first.

    `[n, count]` each; fewer columns if there are fewer.
    """
    from sklearn.neighbors import NearestNeighbors

    count = min(count, len(vectors) - 1)
    if count < 1:
        return np.zeros((len(vectors), 0)), np.zeros((len(vectors), 0), np.int64)
    return NearestNeighbors(n_neighbors=count).fit(vectors).kneighbors()
