"""Which groups validate."""

import numpy as np
import pytest

from manifests_tools.split import choose_valid, group_of


def lengths(number: int, seed: int = 0, spread: float = 1.0) -> dict[str, int]:
    sizes = np.random.default_rng(seed).lognormal(10, spread, number).astype(int) + 1
    return {f"album {i}": int(size) for i, size in enumerate(sizes)}


@pytest.mark.parametrize(
    ("group_by", "group"),
    [("folder", "artist/album/cd 1"), ("file", "artist/album/cd 1/song.wav"), (1, "artist"),
     (2, "artist/album"), (3, "artist/album/cd 1"), (9, "artist/album/cd 1")],
)  # fmt: skip
def test_group_of_a_track(group_by, group):
    assert group_of("artist/album/cd 1/song.wav", group_by) == group


@pytest.mark.parametrize("group_by", ["folder", 1, 2])
def test_files_in_the_root_are_a_group(group_by):
    assert group_of("song.wav", group_by) == ""


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5])
def test_the_share_of_the_duration_is_met(share):
    for seed in range(20):
        sizes = lengths(1000)
        taken = sum(sizes[group] for group in choose_valid(sizes, share, seed)) / sum(
            sizes.values()
        )
        assert share <= taken <= 1.5 * share


@pytest.mark.parametrize("share", [1e-6, 0.05, 0.5, 0.999999])
@pytest.mark.parametrize("number", [2, 3, 7])
def test_at_least_one_group_and_never_all(number, share):
    for seed in range(50):
        chosen = choose_valid(lengths(number, seed, spread=3), share, seed)
        assert 0 < len(chosen) < number


def test_a_group_too_large_for_the_share_never_validates():
    for seed in range(30):
        sizes = {**lengths(20, spread=0.1), "collected works": 10**7}
        assert "collected works" not in choose_valid(sizes, 0.01, seed)


def test_if_all_are_too_large_the_smallest_validates():
    for seed in range(10):
        assert choose_valid({"a": 500, "b": 300, "c": 400}, 0.05, seed) == {"b"}


def test_the_order_of_the_groups_does_not_matter_and_the_seed_does():
    sizes = lengths(100)
    shuffled = dict(reversed(sizes.items()))
    assert choose_valid(sizes, 0.1, 0) == choose_valid(shuffled, 0.1, 0)
    assert choose_valid(sizes, 0.1, 0) != choose_valid(sizes, 0.1, 1)


def test_most_of_the_validation_split_stays_when_folders_are_added():
    sizes = lengths(400, spread=0.3)
    before = choose_valid(sizes, 0.1, 0)
    added = {f"new {name}": size for name, size in list(sizes.items())[:40]}
    after = choose_valid({**sizes, **added}, 0.1, 0)
    assert len(before & after) >= 0.9 * len(before)
