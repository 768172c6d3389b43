"""Write a folder for the Hugging Face hub.

transformers opens it without this package, unless it has no such model (`OWN`).
"""

import contextlib
from importlib.util import find_spec
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from music_ssl_fairseq.compat import torchaudio_models
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.export import check
from music_ssl_fairseq.export.card import model_card
from music_ssl_fairseq.export.source import ExportSource
from music_ssl_fairseq.runtime.files import write_json
from music_ssl_fairseq.runtime.imports import optional
from music_ssl_fairseq.upstream.hugging_face import (
    CONFIG,
    PREPROCESSOR,
    SAFETENSORS,
    read,
    to_preprocessor,
    to_state,
)
from music_ssl_fairseq.upstream.hugging_face_config import OWN, to_config
from music_ssl_fairseq.upstream.model import build_encoder

CARD = "README.md"


def write(source: ExportSource, folder: Path, name: str) -> str:
    """Write config.json, model.safetensors, preprocessor_config.json and a model card.

    The weights are float32. Heads are left out, because AutoModel has no place for them.
    """
    contents = source.contents
    config = to_config(contents, source.settings.get("model", {}))
    own = config["model_type"] == OWN
    state = {n: t.contiguous() for n, t in contents.state.items()} if own else to_state(contents)
    write_json(folder / CONFIG, config)
    write_json(folder / PREPROCESSOR, to_preprocessor(contents))
    # safetensors' own writer makes files that only the owner can read.
    (folder / SAFETENSORS).write_bytes(save(state, {"format": "pt"}))
    card = model_card(source, name, None if own else config["architectures"][0])
    (folder / CARD).write_text(card, encoding="utf-8")
    if own:
        return f"opened by music_ssl_fairseq.load alone; {_check_own(source, folder, name)}"
    if find_spec("transformers") is None:
        return "not checked, because transformers is not installed"
    return _check(source, folder, name)


def _check_own(source: ExportSource, folder: Path, name: str) -> str:
    ours, theirs = (
        build_encoder(contents, "fp32", "off").eval()
        for contents in (source.contents, read(folder))
    )
    difference = check.compare_on_waveforms(ours, ours.layers, theirs.layers, name)
    return f"checked: {difference}"


def _check(source: ExportSource, folder: Path, name: str) -> str:
    with contextlib.suppress(InputError):
        torchaudio_models()  # transformers imports it, and fails where it refuses its torch
    transformers = optional("transformers", "export")
    transformers.utils.logging.disable_progress_bar()
    theirs, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    left = [key for kind in ("missing_keys", "unexpected_keys") for key in report[kind]]
    if left:
        raise InputError(f"{name}: not written, because tensors do not fit: {', '.join(left)}")
    ours = build_encoder(source.contents, "fp32", "off").eval()

    def expected(waveform: Tensor, padding: Tensor | None) -> list[Tensor]:
        layers = ours.layers(waveform, padding)[1:]
        if ours.encoder.layer_norm_first:
            # Some versions of transformers keep the last layer as it is, some normalise it.
            layers[-1] = ours.encoder.layer_norm(layers[-1])
        return layers

    def found(waveform: Tensor, padding: Tensor | None) -> list[Tensor]:
        mask = None if padding is None else (~padding).long()
        output = theirs.eval()(waveform, attention_mask=mask, output_hidden_states=True)
        return [*output.hidden_states[1:-1], output.last_hidden_state]

    difference = check.compare_on_waveforms(ours, expected, found, name)
    return f"checked with transformers {transformers.__version__}: {difference}"
