"""Probing a frozen encoder: its features, computed once, and what is measured with them.

`source` makes features of audio, `windows` says of which parts, `store` and `fill` keep them,
`dataset` hands them out with their labels, `predictions` gathers what probes say of a split, and
`metrics` and `beats` judge it. The probes themselves are `models.music_probe`.
"""
