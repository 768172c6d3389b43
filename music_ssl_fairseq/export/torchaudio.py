"""Write a state dict for torchaudio's own model.

    arguments = json.load(open("wav2vec2_model.json"))
    model = torchaudio.models.wav2vec2_model(**arguments)
    model.load_state_dict(torch.load("model.pt"))

Pass it waveforms of different lengths one by one: in a padded batch a group norm's statistics
include the padding, whatever `lengths` says.

For a base model, `torchaudio.models.hubert_base()` is the same as `wav2vec2_model(**arguments)`.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from music_ssl_fairseq.compat import torchaudio_models
from music_ssl_fairseq.export import check
from music_ssl_fairseq.export.check import save
from music_ssl_fairseq.export.source import ExportSource
from music_ssl_fairseq.runtime.files import write_json
from music_ssl_fairseq.upstream.model import build_encoder
from music_ssl_fairseq.upstream.torchaudio import SETTINGS, to_arguments, to_state

FILE = "model.pt"


def write(source: ExportSource, folder: Path, name: str) -> str:
    """Write model.pt and wav2vec2_model.json."""
    wav2vec2_model = torchaudio_models().wav2vec2_model
    arguments = to_arguments(source.contents, source.settings.get("model", {}))
    save(to_state(source.contents), folder / FILE)
    write_json(folder / SETTINGS, arguments)
    theirs = wav2vec2_model(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    theirs.load_state_dict(torch.load(folder / FILE, weights_only=True))
    ours = build_encoder(source.contents, "fp32", "off").eval()

    def found(waveform: Tensor, padding: Tensor | None) -> list[Tensor]:
        lengths = None if padding is None else (~padding).sum(-1)
        return theirs.eval().extract_features(waveform, lengths)[0]

    def expected(waveform: Tensor, padding: Tensor | None) -> list[Tensor]:
        return ours.layers(waveform, padding)[1:]

    return f"checked with torchaudio: {check.compare_on_waveforms(ours, expected, found, name)}"
