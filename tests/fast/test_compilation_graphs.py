"""Each compiled function is one graph: where compilation breaks off, Python runs in between."""

import pytest
import torch

from music_ssl_fairseq.fast import dispatch
from tests import tiny

FILTERS = {"pitch_bands": 12, "pitch_taps": 1024, "mel_bands": 8}
WHOLE_TEACHER = {"ema_transformer_only": False, "ema_layers_only": False}
MODELS = {
    "musicHuBERT": lambda: tiny.music_hubert(20, 9, label_layers=[1, 3], **FILTERS),
    "music2vec": lambda: tiny.music2vec(20, extractor_mode="default", **WHOLE_TEACHER),
    "visible": lambda: tiny.music_hubert(20, encode="visible"),
}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_breaks_off(monkeypatch, name):
    model = MODELS[name]().eval()
    names = set()

    def compiled(function, enabled):
        names.add(function.__name__)
        return torch.compile(function, backend="eager", fullgraph=True) if enabled else function

    monkeypatch.setattr(dispatch, "compiled", compiled)
    execution = model.execution.using(True)
    monkeypatch.setattr(model.execution, "for_batch", lambda *_: execution)
    batch = tiny.batch()
    units = batch.pop("units") + 4
    classes = units.expand(-1, -1, 2) if name == "musicHuBERT" else units
    batch["units" if name == "music2vec" else "target"] = classes
    with torch.no_grad():
        model(**batch)
    assert {"_encoder_input", "_embed", "_run_layer", "_score"} <= names
