"""A sample of frames in batches that fit, each from all over the corpus."""

from collections.abc import Iterator

import numpy as np

from music_ssl_fairseq.label.sample import Part, Sample

SECTION = 1000
"""Frames of a track that stay together, ten seconds and more: a batch of whole tracks would be of a
few dozen, and single frames would have to be read one by one, in every batch again."""


class Batches:
    """Sections of tracks, in random order, in batches of at most `size` frames.

    What is held of a sample is where its sections are, and which of its frames these are only of
    the batch asked for.

    Attributes:
        sizes: `[batches]` frames of each.
    """

    def __init__(self, sample: Sample, size: int):
        self._sample = sample
        self._section = min(SECTION, size)
        counts = -(-sample.quotas // self._section)
        tracks = np.repeat(np.arange(len(counts)), counts)
        numbers = np.arange(len(tracks)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = np.random.default_rng(sample.seed).permutation(len(tracks))
        self._tracks, self._numbers = tracks[order], numbers[order]
        left = sample.quotas[self._tracks] - self._numbers * self._section
        ends = np.cumsum(np.minimum(left, self._section))
        edges, frames = [0], [0]
        while edges[-1] < len(ends):
            edges.append(int(np.searchsorted(ends, frames[-1] + size, "right")))
            frames.append(int(ends[edges[-1] - 1]))
        self._edges = edges
        self.sizes = np.diff(frames)

    def __len__(self) -> int:
        return len(self.sizes)

    def parts(self, batch: int) -> Iterator[Part]:
        """What a batch has, track by track in the manifest's order."""
        rows = slice(self._edges[batch], self._edges[batch + 1])
        tracks, numbers = self._tracks[rows], self._numbers[rows]
        order = np.lexsort((numbers, tracks))
        tracks, firsts = tracks[order], numbers[order] * self._section
        edges = np.flatnonzero(np.diff(tracks, prepend=-1))
        for track, own in zip(tracks[edges].tolist(), np.split(firsts, edges[1:]), strict=True):
            whole = self._sample.part(track)
            frames = [whole.frames[first : first + self._section] for first in own.tolist()]
            yield whole._replace(frames=np.concatenate(frames))
