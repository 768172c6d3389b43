"""Crops: they cover their tracks, lie on the grid, and follow from seed, epoch and index."""

import numpy as np
import pytest

from music_ssl_fairseq.data.crops import CROPS, MASKS, ORDER, REPLACEMENT, CropPlan, generator

LENGTHS = np.array([1_000, 80_000, 15_999, 479_999, 16_000, 80_159, 200_000, 4_800_000])
CROP = 80_000
HOP = 160


def plan(lengths=LENGTHS, **options):
    return CropPlan(lengths, CROP, hop=HOP, min_samples=16_000, **options)


def all_crops(crops, epoch):
    return [crops.crop(i, epoch) for i in range(len(crops))]


def test_as_many_as_a_track_deserves():
    crops = plan()
    tracks = [track for track, _, _ in all_crops(crops, 1)]
    assert np.unique(tracks, return_counts=True)[0].tolist() == [1, 3, 4, 5, 6, 7]
    assert np.unique(tracks, return_counts=True)[1].tolist() == [1, 5, 1, 1, 2, 60]
    assert len(crops) == 70
    assert crops.num_too_short == 2
    assert crops.num_tracks == 6


def test_crops_per_track():
    crops = plan(crops_per_track=3)
    tracks = [track for track, _, _ in all_crops(crops, 1)]
    assert tracks == [track for track in (1, 3, 4, 5, 6, 7) for _ in range(3)]


@pytest.mark.parametrize("options", [{}, {"crops_per_track": 2}, {"crops_per_track": 5_000}])
def test_crops_lie_inside_and_on_the_grid(options):
    crops = plan(LENGTHS[:-1], **options)
    lengths = crops.lengths
    for index, (track, start, length) in enumerate(all_crops(crops, 3)):
        assert start % HOP == 0
        assert 0 <= start <= LENGTHS[track] - length
        assert length == min(CROP, LENGTHS[track]) == lengths[index] == crops.length(index)


def test_crops_come_from_all_parts_of_a_track():
    """One crop in each of 60 strata of the possible starts."""
    crops = plan(LENGTHS[-1:])
    edges = np.arange(61) * ((4_800_000 - CROP) // HOP + 1) // 60 * HOP
    for epoch in range(20):
        starts = np.array([start for _, start, _ in all_crops(crops, epoch)])
        assert (edges[:-1] <= starts).all()
        assert (starts < edges[1:]).all()


def test_what_an_epoch_reads_of_a_track():
    """Five minutes in 5 s crops: 83 % in one epoch, 96 % in two, 98 % in three."""
    read = np.zeros((10, 3, LENGTHS[-1] // HOP), bool)
    for seed in range(10):
        crops = plan(LENGTHS[-1:], seed=seed)
        for epoch in range(3):
            for _, start, length in all_crops(crops, epoch):
                read[seed, epoch, start // HOP : (start + length) // HOP] = True
    shares = np.logical_or.accumulate(read, axis=1).mean(axis=(0, 2))
    assert shares == pytest.approx([0.83, 0.96, 0.98], abs=0.01)


def test_starts_are_uniform_over_epochs():
    crops = plan(np.array([CROP + 10 * HOP]))
    starts = [crops.crop(0, epoch)[1] // HOP for epoch in range(11_000)]
    counts = np.bincount(starts, minlength=11)
    assert len(counts) == 11
    # Chi-squared with 10 degrees of freedom: 29.6 is exceeded once in a thousand seeds.
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 29.6


def test_the_same_again_and_different_otherwise():
    crops = plan()
    assert all_crops(crops, 2) == all_crops(plan(), 2)
    assert all_crops(crops, 2) != all_crops(crops, 3)
    assert all_crops(crops, 2) != all_crops(plan(seed=1), 2)


def test_index_out_of_range():
    crops = plan()
    for index in (-1, len(crops)):
        with pytest.raises(IndexError):
            crops.crop(index, 0)


def test_order():
    crops = plan()
    for shuffle in (True, False):
        order = crops.order(1, shuffle)
        assert sorted(order) == list(range(len(crops)))
        lengths = crops.lengths[order]
        assert (np.diff(lengths) <= 0).all()
        assert lengths[-1] == 16_000
    assert (crops.order(1) == plan().order(1)).all()
    assert (crops.order(1) != crops.order(2)).any()
    full = crops.order(1, shuffle=False)[:-1]
    assert (np.diff(full) > 0).all()
    assert (np.diff(crops.order(1)[:-1]) < 0).any()


def test_nothing_is_long_enough():
    crops = plan(np.array([10, 20]))
    assert len(crops) == 0
    assert crops.num_too_short == 2
    assert crops.order(1).shape == (0,)


def test_generators_differ_in_every_argument():
    base = (1, 2, 3, CROPS)
    variants = [base, (2, 2, 3, CROPS), (1, 3, 3, CROPS), (1, 2, 4, CROPS), (-1, 2, 3, CROPS)]
    variants += [(1, 2, 3, stream) for stream in (MASKS, REPLACEMENT, ORDER)]
    draws = {tuple(generator(*arguments).random(4)) for arguments in variants}
    assert len(draws) == len(variants)
    assert tuple(generator(*base).random(4)) in draws


def test_neighbouring_generators_are_independent():
    draws = np.array([generator(0, 1, index, MASKS).random(50) for index in range(400)])
    correlation = np.corrcoef(draws)[~np.eye(400, dtype=bool)]
    # The spread of the correlation of 50 independent numbers is 1 / 7.
    assert abs(correlation.mean()) < 0.005
    assert abs(correlation.std() - 1 / 7) < 0.01
    assert abs(draws.mean() - 0.5) < 0.01
