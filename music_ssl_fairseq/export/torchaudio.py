"""A state dict that torchaudio's own model loads.

    arguments = json.load(open("wav2vec2_model.json"))
    model = torchaudio.models.wav2vec2_model(**arguments)
    model.load_state_dict(torch.load("model.pt"))

Waveforms of different lengths go through it one by one: in a padded batch a group norm takes its
statistics over the padding, whatever `lengths` says.

For a base model, `torchaudio.models.hubert_base()` is the same as `wav2vec2_model(**arguments)`.
"""

import json
from pathlib import Path

import torch

from music_ssl_fairseq.export import check
from music_ssl_fairseq.export.saving import save
from music_ssl_fairseq.export.source import Source
from music_ssl_fairseq.upstream.model import build_encoder
from music_ssl_fairseq.upstream.torchaudio import SETTINGS, to_arguments, to_state

FILE = "model.pt"


def write(source: Source, folder: Path, name: str) -> str:
    """Write model.pt and wav2vec2_model.json.

    Raises:
        InputError: if torchaudio has no such model, or the result differs from the original.
    """
    from torchaudio.models import wav2vec2_model

    arguments = to_arguments(source.contents, source.settings.get("model", {}))
    save(to_state(source.contents), folder / FILE)
    (folder / SETTINGS).write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")
    theirs = wav2vec2_model(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    theirs.load_state_dict(torch.load(folder / FILE, weights_only=True))
    ours = build_encoder(source.contents, "fp32", "off").eval()
    waveform, padding_mask = check.waveforms(ours.grid)
    largest = 0.0
    for padding in (None, padding_mask):
        lengths = None if padding is None else (~padding).sum(-1)
        with torch.no_grad():
            found, _ = theirs.eval().extract_features(waveform, lengths)
        real = check.real_frames(ours, padding, found[0].size(1))
        expected = ours.layers(waveform, padding)[1:]
        largest = max(largest, check.compare(expected, found, name, real))
    return (
        f"checked with torchaudio: {len(found)} layers, with and without padding, differ by "
        f"{largest:.1e} at most"
    )
