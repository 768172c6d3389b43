"""Read a checkpoint for export: the encoder, and a fairseq checkpoint's record of training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from music_ssl_fairseq import upstream
from music_ssl_fairseq.upstream import checkpoint, hugging_face
from music_ssl_fairseq.upstream.contents import PREFIXES, Contents
from music_ssl_fairseq.upstream.find_checkpoint import locate
from music_ssl_fairseq.upstream.safe_load import safe_load


@dataclass
class ExportSource:
    """A checkpoint to export; fields that its file does not have are empty."""

    contents: Contents  # the encoder
    # Fairseq's configuration (`task`, `model`, `optimization`, ...), plain values; empty if it
    # comes from no fairseq checkpoint, ours or stock
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    # The tensors outside of the encoder, under fairseq's names; none of a model with a decoder
    # (`encode=visible`)
    heads: dict[str, Tensor] = field(default_factory=dict)
    # The tensors of data2vec's teacher (`_ema`)
    teacher: dict[str, Tensor] = field(default_factory=dict)
    num_updates: int | None = None  # updates of the training

    def setting(self, section: str, name: str, default: Any = None) -> Any:
        """Return one value of the configuration, or `default` if it is not known."""
        value = self.settings.get(section, {}).get(name)
        return default if value is None else value


def read(name: str | Path) -> ExportSource:
    """Read a checkpoint in any of the formats that `music_ssl_fairseq.load` takes."""
    path = locate(name)
    loaded = safe_load(path) if hugging_face.folder_of(path) is None else {}
    if not checkpoint.is_checkpoint(loaded):
        return ExportSource(upstream.read(name))
    with checkpoint.damaged_settings(path):
        history = loaded.get("optimizer_history") or [{}]
        settings = checkpoint.settings_of(loaded, path)
        heads = {
            name: tensor
            for name, tensor in loaded["model"].items()
            if isinstance(tensor, Tensor) and name != "mask_emb" and not name.startswith(PREFIXES)
        }
        teacher = dict(loaded["model"].get("_ema") or {})
        if settings.get("model", {}).get("encode") == "visible":
            # Heads read the decoder, which no other software has.
            teacher = {name: teacher[name] for name in teacher if name not in heads}
            heads = {}
        return ExportSource(
            contents=checkpoint.from_checkpoint(loaded, path),
            settings=settings,
            heads=heads,
            teacher=teacher,
            num_updates=int(history[-1].get("num_updates") or 0) or None,
        )
