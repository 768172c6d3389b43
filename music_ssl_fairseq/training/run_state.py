"""The state of a run that fairseq's training loop keeps in its functions and modules."""

import contextlib
from typing import Any


def forget_earlier_run() -> None:
    """Forget the best validation of an earlier run in this process, and its TensorBoard files.

    fairseq keeps them in functions and modules: in a sweep, the second run would write
    checkpoint_best.pt only after a validation better than all of the first run's, and its curves
    into the first run's folder.
    """
    from fairseq import checkpoint_utils
    from fairseq.logging import progress_bar
    from fairseq_cli import train as command

    while progress_bar._tensorboard_writers:
        with contextlib.suppress(OSError):
            progress_bar._tensorboard_writers.popitem()[1].close()
    progress_bar.tensorboard_is_full = False

    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    for name in ("best", "num_runs"):
        vars(command.should_stop_early).pop(name, None)


def early_stopping() -> dict[str, Any]:
    """Return the best validation and the number of worse ones since, for `checkpoint.patience`."""
    from fairseq_cli import train as command

    state = vars(command.should_stop_early)
    return {name: state[name] for name in ("best", "num_runs") if name in state}


def take_early_stopping(state: dict[str, Any] | None) -> None:
    """Restore the state of `early_stopping`, which fairseq does not save."""
    from fairseq_cli import train as command

    vars(command.should_stop_early).update(state or {})
