"""Patches of fairseq's training loop, so that nothing is lost: applied once, by our tasks.

docs/architecture.md has a table of all patches. They use `checkpoints`, which writes a state whole
or not at all, `background`, which does so while training continues, `stream`, which reads ahead,
and `interruption`, which receives signals. `run_state` has what fairseq keeps of a run.
"""

import functools


def prepare_training(background_saves: bool = True) -> None:
    """Patch fairseq, and in its training command receive signals. Tasks call this first."""
    from music_ssl_fairseq.compat import is_training_command
    from music_ssl_fairseq.training.background import writer
    from music_ssl_fairseq.training.interruption import interruption

    _patch()
    writer.wait()  # for the run before, of a sweep
    writer.on = background_saves
    if is_training_command():
        interruption.install()


@functools.cache
def _patch() -> None:
    from music_ssl_fairseq.training.epoch import patch_epochs
    from music_ssl_fairseq.training.logs import patch_logs
    from music_ssl_fairseq.training.non_finite import patch_non_finite
    from music_ssl_fairseq.training.saving import patch_saving
    from music_ssl_fairseq.training.stopping import patch_stopping

    # The first four patch different functions, so their order does not matter.
    patch_saving()
    patch_logs()
    patch_epochs()
    patch_non_finite()
    # Last, around `load_checkpoint` of saving and `train_step` of non_finite: a signal in either
    # must be received.
    patch_stopping()
