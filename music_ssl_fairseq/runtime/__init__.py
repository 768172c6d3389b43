"""Helpers of every package: CPUs, files, locks, texts, arrays, optional imports, delayed fetch."""
