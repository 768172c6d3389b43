"""The hashed dropout drops as torch's does: as often, anywhere, and the same both ways."""

import numpy as np
import torch

from music_ssl_fairseq.fast.hashed_dropout import draw_seeds, hashed_dropout

SHAPE = (40, 249, 96)


def dropped(seed: int, p: float = 0.1) -> np.ndarray:
    return hashed_dropout(torch.ones(SHAPE), p, torch.tensor(seed, dtype=torch.int32)).numpy() == 0


def test_it_drops_the_share_and_scales_the_rest():
    x = torch.randn(SHAPE)
    for p in (0.1, 0.5):
        y = hashed_dropout(x, p, draw_seeds(1, x.device)[0])
        kept = y != 0
        assert abs(kept.double().mean().item() - (1 - p)) < 4 * (p * (1 - p) / x.numel()) ** 0.5
        torch.testing.assert_close(y[kept], x[kept] / (1 - p))


def test_drops_are_independent_of_place_and_of_other_seeds():
    """Correlations of masks with their neighbours and with other seeds' are those of chance."""
    mask = dropped(12345)
    others = [
        *(np.roll(mask, 1, axis) for axis in range(3)),
        *(np.roll(mask, 2**n, 2) for n in range(1, 6)),
        *(dropped(seed) for seed in (12346, 12345 + 2**16, 0, 2**31 - 1)),
    ]
    chance = 4.5 / mask.size**0.5
    assert all(abs(np.corrcoef(mask.ravel(), o.ravel())[0, 1]) < chance for o in others)
    for axes in ((0, 1), (0, 2), (1, 2)):
        rate = mask.mean(axes)
        count = mask.size / len(rate)
        assert np.abs(rate - 0.1).max() < 5 * (0.09 / count) ** 0.5


def test_the_gradient_goes_where_the_value_came_through():
    x = torch.randn(SHAPE, requires_grad=True)
    y = hashed_dropout(x, 0.3, torch.tensor(7, dtype=torch.int32))
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, (y != 0) / 0.7)


def test_seeds_follow_torch_s_generator():
    torch.manual_seed(3)
    first = draw_seeds(6, torch.device("cpu"))
    torch.manual_seed(3)
    assert torch.equal(first, draw_seeds(6, torch.device("cpu")))
    assert len(set(first.tolist())) == 6
