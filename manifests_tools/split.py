"""Choose the tracks that validate: whole folders, by a hash of the seed and their names."""

import os
from collections.abc import Mapping
from hashlib import blake2b

GroupBy = str | int
"""`folder`: the folder a file is in; n: the first n folders of its name; `file`: the file alone."""

_MAX_OVERSHOOT = 1.5  # times the share; a group that would exceed it is skipped


def group_of(name: str, group_by: GroupBy) -> str:
    """Return the group of a track; the root itself is `""`."""
    if group_by == "file":
        return name
    folder = os.path.dirname(name)
    if group_by == "folder":
        return folder
    return os.sep.join(folder.split(os.sep)[: int(group_by)])


def choose_valid(lengths: Mapping[str, int], share: float, seed: int) -> set[str]:
    """Choose the groups that validate: about `share` of the total length.

    Groups are ordered by a hash of seed and name, so most of a validation split stays when the
    corpus grows. A group too large for the share is skipped; if all are, the smallest is taken. So
    of two groups and more, at least one is chosen, and never all. `share` is in (0, 1).
    """

    def place(group: str) -> bytes:
        return blake2b(b"%d\0%s" % (seed, os.fsencode(group)), digest_size=16).digest()

    order = sorted(lengths, key=place)
    wanted = share * sum(lengths.values())
    chosen: set[str] = set()
    taken = 0
    for group in order[:-1]:
        if taken >= wanted:
            break
        if taken + lengths[group] <= _MAX_OVERSHOOT * wanted:
            chosen.add(group)
            taken += lengths[group]
    return chosen or {min(order, key=lengths.__getitem__)}
