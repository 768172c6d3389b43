"""Compute features of whole corpora with a frozen encoder, and store them on disk.

Tracks are cut into windows and batched (`batches`), read by processes that run ahead of the model
(`reading`), go through the encoder (`run`), and are put together and written (`store`). The
command is `python -m music_ssl_fairseq.extract`.
"""
