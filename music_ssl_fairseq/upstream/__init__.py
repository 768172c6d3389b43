"""Load pre-trained encoders of any origin behind one interface.

    from music_ssl_fairseq.upstream import load

    model = load("runs/music_hubert/config")
    layers = model.features("song.flac").layers  # [layers, frames, D]

A file format is a module that returns `Contents`: `checkpoint` (fairseq), `hugging_face`,
`torchaudio`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from music_ssl_fairseq.runtime.machine import own_defaults

if TYPE_CHECKING:
    import torch

    from music_ssl_fairseq.upstream.contents import Contents
    from music_ssl_fairseq.upstream.model import Upstream


@own_defaults()
def load(
    path: str | os.PathLike, device: str | torch.device = "cpu", precision: str = "auto"
) -> Upstream:
    """Load a pre-trained encoder, a `torch.nn.Module`. Nothing in the file is executed.

    Raises InputError if it is something else, damaged, or would run code.

    Args:
        path: a fairseq checkpoint (music_hubert, music2vec, HuBERT, data2vec_audio, wav2vec 2.0),
            a Hugging Face folder of HubertModel, Data2VecAudioModel or Wav2Vec2Model,
            torchaudio's state dict of a HuBERT, the folder of a run, for its best checkpoint, or
            `hf:USER/NAME` or `hf:USER/NAME@REVISION` on the Hugging Face hub.
        device: where to put it.
        precision: "fp32", "bf16", or "auto": bf16 on GPUs that have it, else fp32.
    """
    from music_ssl_fairseq.upstream.model import Upstream

    return Upstream(read(path), device, precision)


@own_defaults()
def random(
    path: str | os.PathLike | Contents,
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: str = "auto",
) -> Upstream:
    """Build a checkpoint's architecture with weights drawn from `seed`, the baseline of a probe.

    It takes what `load` takes, or contents already read.
    """
    from music_ssl_fairseq.upstream.build import random_contents
    from music_ssl_fairseq.upstream.contents import Contents
    from music_ssl_fairseq.upstream.model import Upstream

    contents = path if isinstance(path, Contents) else read(path)
    return Upstream(random_contents(contents, seed), device, precision)


@own_defaults()
def read(path: str | os.PathLike) -> Contents:
    """Read a checkpoint, and recognise its format by its content."""
    from music_ssl_fairseq.runtime import hub
    from music_ssl_fairseq.upstream import checkpoint, hugging_face
    from music_ssl_fairseq.upstream.find_checkpoint import locate
    from music_ssl_fairseq.upstream.safe_load import safe_load

    found = locate(path)
    folder = hugging_face.folder_of(found)
    if folder is not None:
        contents = hugging_face.read(folder)
        return replace(contents, origin=hub.pinned(path, found)) if hub.is_name(path) else contents
    loaded = safe_load(found)
    if checkpoint.is_checkpoint(loaded):
        return checkpoint.from_checkpoint(loaded, found)
    from music_ssl_fairseq.upstream import torchaudio

    return torchaudio.from_state_dict(loaded, found)
