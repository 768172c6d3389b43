"""Probes of several encoders and tasks as one table: `python -m music_ssl_fairseq report DIR...`.

`gather` finds the results of `fairseq-validate`, `bootstrap` computes intervals, `floors` compares
front ends with published figures, `training` reads logs of trainings.
`tables` and `page` write, and `probe_figures` draws. `study*` report examples/study.
"""
