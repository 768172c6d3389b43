"""fairseq's training loop, made to lose nothing: patched once, by our tasks.

`checkpoints` writes one state to one path, whole or not at all, and `saving` lets fairseq do it so.
`logs` does without logs on a full disk. `epoch` continues an epoch where its crops ended.
`interruption` receives signals, and `stopping` stops at an update. `numbers` names the tracks of a
loss that is not finite. What has to be there before fairseq imports a task, how several processes
find each other and end, is in `hydra_plugins/music_ssl_fairseq_launch.py`.
"""

import functools


def prepare_training() -> None:
    """What our tasks do first: patch fairseq, and in its training command receive signals."""
    from music_ssl_fairseq.compat import is_training_command
    from music_ssl_fairseq.training.interruption import interruption

    _patch()
    if is_training_command():
        interruption.install()


@functools.cache
def _patch() -> None:
    from music_ssl_fairseq.training.epoch import patch_epochs
    from music_ssl_fairseq.training.logs import patch_logs
    from music_ssl_fairseq.training.numbers import patch_numbers
    from music_ssl_fairseq.training.saving import patch_saving
    from music_ssl_fairseq.training.stopping import patch_stopping

    patch_saving()
    patch_logs()
    patch_epochs()
    patch_numbers()
    patch_stopping()
