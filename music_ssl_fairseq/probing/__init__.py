"""Probing a frozen encoder on a music task.

`spec`, `labels` and `writer` are the task's folder; `features/` computes and caches the encoder's
features; `dataset` pairs them with labels; `heads/` is the grid of heads, its updates and its
optimizer; `scoring/` judges what the heads predict. `experiment` joins them, and `probe_tasks`
probes an encoder on several tasks.
"""
