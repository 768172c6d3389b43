"""Span masks against fairseq's, where those are left as drawn (`require_same_masks=False`), and
fairseq's own."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from fairseq.data.data_utils import compute_mask_indices

from music_ssl_fairseq.data.crops import MASKS, generator
from music_ssl_fairseq.data.masks import FairseqMask, SpanGrowth, SpanMask, expected_coverage
from music_ssl_fairseq.errors import InputError
from tests import tiny
from tests.benchmarks.mask_ratios import ratios

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


MODELS = {
    "fairseq.models.hubert.hubert": (tiny.fairseq_hubert, 2),
    "fairseq.examples.data2vec.models.data2vec_audio": (tiny.fairseq_data2vec, 1),
}


@pytest.mark.parametrize("frames", [[249] * 4, [249, 249, 120, 99]])
@pytest.mark.parametrize(("prob", "length"), [(0.8, 10), (0.65, 5), (0.5, 15), (0.0, 10)])
@pytest.mark.parametrize("module", MODELS)
def test_fairseqs_masks_are_those_of_its_models(monkeypatch, module, prob, length, frames):
    """The model draws for itself; all that it is given is the seed, which it trains without."""
    make, min_spans = MODELS[module]
    indices = np.array([7, 3, 11, 20])
    seeded = partial(compute_mask_indices, seed=5, epoch=2, indices=indices)
    monkeypatch.setattr(f"{module}.compute_mask_indices", seeded)
    padding = torch.arange(max(frames)) >= torch.tensor(frames)[:, None]
    model = make(mask_prob=prob, mask_length=length)
    _, theirs = model.apply_mask(torch.zeros(4, max(frames), 32), padding, None)
    ours = FairseqMask(prob, length, min_spans).batch(frames, 5, 2, indices)
    if prob == 0:
        assert theirs is None
        assert not ours.any()
    else:
        assert (ours == theirs.numpy()).all()
        assert len(set(ours.sum(1))) == 1  # require_same_masks
        assert not ours[padding.numpy()].any()


def test_fairseqs_masks_follow_from_seed_epoch_and_the_batchs_indices():
    mask = FairseqMask(0.8, 10)
    arguments = ([249] * 3, 0, 1, [4, 5, 6])
    first = mask.batch(*arguments)
    np.random.random(7)  # noqa: NPY002 (whoever else draws)
    assert (mask.batch(*arguments) == first).all()
    for other in ((1, 1, [4, 5, 6]), (0, 2, [4, 5, 6]), (0, 1, [4, 5, 7])):
        assert (mask.batch([249] * 3, *other) != first).any()
    alone = mask.batch([249], 0, 1, [4])
    assert (alone[0] & first[0] == first[0]).all()  # the batch only unmasks


@pytest.mark.parametrize("min_spans", [1, 2])
@pytest.mark.parametrize("prob", [0.1, 0.65, 1.0])
@pytest.mark.parametrize("length", [1, 5, 10])
def test_crops_on_which_fairseqs_function_fails_are_refused(length, prob, min_spans):
    mask = FairseqMask(prob, length, min_spans)
    fits = []
    for frames in range(2, 60):
        try:
            mask.check(frames)
        except InputError as error:
            assert "mask_mode=fixed" in str(error)  # noqa: PT017
            fits.append(False)
            continue
        fits.append(True)
        masks = mask.batch([frames] * 50, 0, 0, range(50))
        assert 0 < masks.sum() < masks.size
    assert fits == sorted(fits)
    assert any(fits) == (prob < 1 or length > 1)


# As in the table of docs/deviations.md (300 batches of each there).
RATIOS = [
    ((0.80, 10, 2, 249, 17), 56.6, 48.5),
    ((0.65, 10, 1, 1499, 7), 49.0, 46.8),
    ((0.65, 10, 1, 249, 47), 49.4, 39.6),
    ((0.50, 10, 1, 1499, 7), 40.2, 38.3),
    ((0.80, 10, 1, 1499, 7), 56.6, 54.2),
    ((0.65, 5, 1, 1499, 7), 50.2, 48.7),
    ((0.65, 15, 1, 1499, 7), 48.6, 45.9),
]


@pytest.mark.parametrize(("setting", "fixed", "fairseq"), RATIOS)
def test_the_ratios_that_are_written_beside_the_models(setting, fixed, fairseq):
    found = ratios(*setting, batches=40)
    assert found[0] == pytest.approx(fixed, abs=0.06)
    assert found[1] == pytest.approx(fairseq, abs=0.6)


def test_growing_spans_mask_as_many_frames():
    growth, mask = SpanGrowth(first=2, last=10, epochs=5), SpanMask(0.8, 10)
    lengths = [growth.length(epoch) for epoch in range(1, 8)]
    assert lengths == [2, 4, 6, 8, 10, 10, 10]
    drawn = [ours_of_length(mask, length) for length in lengths]
    assert {tuple(np.unique(masks.sum(1))) for masks in drawn} == {(mask.count(249),)}
    means = [run_lengths(masks).mean() for masks in drawn[:5]]
    assert means == sorted(means)
    assert np.array_equal(drawn[4], ours(mask, 249, 50))


def ours_of_length(mask, length):
    return np.stack([mask.mask(249, generator(0, 0, i, MASKS), length) for i in range(50)])


@pytest.mark.parametrize("growth", [(0, 10, 5), (11, 10, 5), (2, 10, 1)])
def test_growth_that_cannot_be_is_one_line(growth):
    with pytest.raises(InputError, match=r"task\.mask_length_start="):
        SpanGrowth(*growth)
