"""Compute features of whole corpora with a frozen encoder, and store them on disk.

Tracks are read by processes that run ahead of the model, cut into windows and batched (`batches`),
go through the encoder (`run`), and are put together and written (`store`, `row_file`). The command
is `python -m music_ssl_fairseq extract`.
"""
