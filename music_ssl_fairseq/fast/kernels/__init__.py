"""Triton kernels, each file with the functions that launch its own."""
