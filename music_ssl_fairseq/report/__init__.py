"""Probes of several encoders and tasks as one table: `python -m music_ssl_fairseq.report DIR...`.

`gather` finds what `fairseq-validate` left, `bootstrap` says how sure it is, `published` holds the
figures of others, `tables` and `heat_map` write.
"""
