"""Judging heads: predictions of a whole split, metrics, and the files of results."""
