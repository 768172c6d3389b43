"""What every room uses: CPUs, files, locks, texts, arrays, optional imports, delayed fetch."""
