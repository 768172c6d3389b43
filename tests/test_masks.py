"""Span masks against fairseq's, where those are left as drawn (`require_same_masks=False`)."""

import pickle

import numpy as np
import pytest
from fairseq.data.data_utils import compute_mask_indices

from music_ssl_fairseq.data.crops import MASKS, generator
from music_ssl_fairseq.data.masks import SpanMask, expected_coverage
from music_ssl_fairseq.errors import InputError

SETTINGS = [(0.8, 10, 249), (0.65, 10, 249), (0.5, 10, 249), (0.65, 5, 249), (0.65, 15, 249)]
SETTINGS += [(0.8, 10, 1_499), (0.65, 10, 99)]
DRAWS = 2_000


def ours(mask, num_frames, draws=DRAWS):
    return np.stack([mask.mask(num_frames, generator(0, 0, i, MASKS)) for i in range(draws)])


def fairseqs(mask, num_frames, draws=DRAWS, same=False):
    return compute_mask_indices(
        (draws, num_frames),
        None,
        mask.prob,
        mask.length,
        min_masks=mask.min_spans,
        require_same_masks=same,
        seed=1,
        epoch=1,
        indices=np.arange(draws),
    )


def run_lengths(masks):
    edges = np.diff(np.pad(masks.astype(int), ((0, 0), (1, 1))).ravel())
    return np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)


@pytest.mark.parametrize(("prob", "length", "num_frames"), SETTINGS)
def test_the_distribution_is_fairseqs(prob, length, num_frames):
    mask = SpanMask(prob, length)
    drawn, reference = ours(mask, num_frames), fairseqs(mask, num_frames)
    assert (drawn.sum(1) == mask.count(num_frames)).all()
    # The mean of 2,000 sums with a spread of up to 11 frames, and the rounding of our count.
    assert abs(mask.count(num_frames) - reference.sum(1).mean()) < 1.25
    # Per position: the standard error of a difference of shares is 0.016, with 1,500 positions.
    assert np.abs(drawn.mean(0) - reference.mean(0)).max() < 0.075
    assert abs(drawn.mean(0) - reference.mean(0)).mean() < 0.02
    lengths, reference_lengths = run_lengths(drawn), run_lengths(reference)
    assert lengths.mean() == pytest.approx(reference_lengths.mean(), rel=0.1)
    # Only the last span of a crop is ever trimmed.
    assert (lengths < length).sum() <= DRAWS
    assert not drawn[:, -1].any()


def test_expected_coverage_by_enumeration():
    """All pairs and triples of starts, counted."""
    from itertools import combinations

    for spans in (1, 2, 3):
        covered = [
            len({start + i for start in starts for i in range(4)})
            for starts in combinations(range(11 - 4), spans)
        ]
        assert expected_coverage(11, 4, spans) == pytest.approx(np.mean(covered))


def test_fairseqs_ratio_depends_on_the_batch_and_ours_does_not():
    mask = SpanMask(0.8, 10)
    cut_down = np.mean([fairseqs(mask, 249, 100, same=True).mean() for _ in range(3)])
    assert cut_down < 0.48
    assert ours(mask, 249, 100).mean() == mask.count(249) / 249 == pytest.approx(0.566, abs=1e-3)


@pytest.mark.parametrize("prob", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("length", [1, 5, 10])
@pytest.mark.parametrize("num_frames", [*range(2, 24), 50])
def test_short_crops(prob, length, num_frames):
    mask = SpanMask(prob, length)
    assert 1 <= mask.count(num_frames) < num_frames
    drawn = ours(mask, num_frames, draws=60)
    assert (drawn.sum(1) == mask.count(num_frames)).all()
    if num_frames > 4 and mask.count(num_frames) < num_frames - 2:
        assert len(np.unique(drawn, axis=0)) > 1


@pytest.mark.parametrize("num_frames", [0, 1])
def test_too_short_to_mask(num_frames):
    assert SpanMask(0.8, 10).mask(num_frames, generator(0, 0, 0, MASKS)).tolist() == (
        [False] * num_frames
    )


def test_probability_0_masks_nothing():
    assert not SpanMask(0.0, 10).mask(249, generator(0, 0, 0, MASKS)).any()


def test_at_least_min_spans():
    assert SpanMask(0.01, 10, min_spans=4).count(249) == pytest.approx(
        expected_coverage(249, 10, 4), abs=0.5
    )


def test_deterministic_and_picklable():
    mask = SpanMask(0.65, 10)
    again = pickle.loads(pickle.dumps(mask))
    assert (ours(mask, 249, 5) == ours(again, 249, 5)).all()
    assert len(np.unique(ours(mask, 249, 50), axis=0)) == 50


@pytest.mark.parametrize("arguments", [(-0.1, 10), (1.5, 10), (0.5, 0)])
def test_impossible_settings(arguments):
    with pytest.raises(InputError, match="mask_"):
        SpanMask(*arguments)
