"""`python -m music_ssl_fairseq export`: a trained encoder in the formats that others read.

A format is a module with `write(source, folder, name) -> str`, which writes into an empty folder,
checks what it wrote against the original by running both, and says what it checked; a difference is
an InputError. The folder is moved to its place afterwards, so it never holds half a
model or a wrong one.
"""
