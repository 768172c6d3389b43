"""fairseq's training loop, made to lose nothing: patched once, by our tasks.

`checkpoints` writes one state to one path, whole or not at all; `saving` lets fairseq do it that
way; `epoch` continues an epoch where its crops ended; `interruption` receives signals, and
`stopping` stops at an update; `numbers` names the tracks of a loss that is not finite; `launch` acts
before there is a task: on how several processes find each other.
"""

import functools


@functools.cache
def patch_trainer() -> None:
    """Patch fairseq's trainer and training loop, for this process, once."""
    from music_ssl_fairseq.training.epoch import patch_epochs
    from music_ssl_fairseq.training.numbers import patch_numbers
    from music_ssl_fairseq.training.saving import patch_saving
    from music_ssl_fairseq.training.stopping import patch_stopping

    patch_saving()
    patch_epochs()
    patch_numbers()
    patch_stopping()
