"""Probes of several encoders and tasks as one table: `python -m music_ssl_fairseq report DIR...`.

`gather` finds the results of `fairseq-validate`, `bootstrap` computes intervals, `floors` compares
front ends with published figures. `tables` has the report as Markdown, of which the page is made.
`probe_figures` draws probes, and `training_curves` logs of trainings. `study*` report
examples/study.
"""
