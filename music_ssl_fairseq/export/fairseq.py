"""Write a checkpoint that stock fairseq loads without this package.

    from fairseq import checkpoint_utils
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task(["checkpoint.pt"])

It holds plain values and tensors, so torch's safe unpickler loads it. (Stock checkpoints of HuBERT
hold a Dictionary, which torch >= 2.6 refuses; a list of its symbols replaces it here.) data2vec is
an example in fairseq and must be imported first.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.export import check
from music_ssl_fairseq.export.check import save
from music_ssl_fairseq.export.source import ExportSource
from music_ssl_fairseq.frames import conv_grid, parse_conv_layers
from music_ssl_fairseq.upstream.model import build_encoder

FILE = "checkpoint.pt"
DATA2VEC = "fairseq.examples.data2vec.models.data2vec_audio"
"""Its module in the wheel of ve-fairseq; in a checkout it is the user_dir examples/data2vec."""

_STOCK = {"music_hubert": "hubert", "hubert": "hubert"}
_STOCK |= {"music2vec": "data2vec_audio", "data2vec_audio": "data2vec_audio"}
_TASKS = {"hubert": "hubert_pretraining", "data2vec_audio": "audio_pretraining"}
# Settings of training that both sides have under the same name.
_TRAINING = (
    "dropout", "attention_dropout", "activation_dropout", "dropout_input", "encoder_layerdrop",
    "feature_grad_mult", "mask_prob", "mask_length",
)  # fmt: skip
_HUBERT = ("logit_temp", "skip_nomask")
_DATA2VEC = ("average_top_k_layers", "ema_decay", "ema_end_decay", "ema_anneal_end_step")
_PROJECTION = ("final_proj.weight", "final_proj.bias")
_UNIT_HEADS = ("unit_proj.", "label_embs_concat")  # music2vec's, which fairseq's has not
_HUBERT_HEAD = (*_PROJECTION, "label_embs_concat")
_FINAL_DIM = 256
_SPECIAL_SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>"]


def write(source: ExportSource, folder: Path, name: str) -> str:
    """Write checkpoint.pt, with heads and teacher where the source has them.

    A model without its pre-training head gets one of zeros, which stock fairseq requires. So does a
    model of several label sets, whose checkpoint does not record the number of units per set, and
    one whose head stock fairseq has not: of random projections, of a layer other than the last, or
    after a decoder (`model.encode=visible`).

    Raises InputError if stock fairseq has no such model, the source is stock fairseq's already, or
    the result differs from the original.
    """
    contents = source.contents
    if contents.family not in _STOCK:
        raise InputError(f"{contents.origin}: {contents.family} is not exported to fairseq")
    if source.settings and contents.family in _TASKS:
        raise InputError(f"{contents.origin}: is a checkpoint of stock fairseq's already")
    model = _STOCK[contents.family]
    if model == "hubert" and contents.config["pos_conv_depth"] != 1:
        raise InputError(
            f"fairseq's HubertModel has no pos_conv_depth={contents.config['pos_conv_depth']}"
        )
    task = {
        "_name": _TASKS[model],
        "data": "",
        "sample_rate": contents.sample_rate,
        "normalize": contents.normalise,
    }
    task_state: dict[str, Any] = {}
    if model == "hubert":
        state = _hubert_state(source)
        task |= {"labels": ["km"], "label_rate": _label_rate(source)}
        task_state["dictionaries"] = [None]
        if "label_embs_concat" in state:  # the model needs the dictionary's length
            units = len(state["label_embs_concat"]) - len(_SPECIAL_SYMBOLS)
            task_state["dictionaries"] = [[*_SPECIAL_SYMBOLS, *map(str, range(units))]]
    else:
        state = _data2vec_state(source)
    checkpoint = {
        "args": None,
        "cfg": {
            "common": {"seed": source.setting("common", "seed", 1)},
            "task": task,
            "model": _model(source, model, state),
        },
        "model": state,
        "task_state": task_state,
        "optimizer_history": [
            {"optimizer_name": "none", "lr_scheduler_state": {}}
            | {"num_updates": source.num_updates or 0}
        ],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    save(checkpoint, folder / FILE)
    return _check(source, folder / FILE, model, name)


def _encoder(source: ExportSource) -> dict[str, Tensor]:
    state = dict(source.contents.state)
    dim = source.contents.config["encoder_embed_dim"]
    state.setdefault("mask_emb", torch.zeros(dim))
    return state


def _hubert_state(source: ExportSource) -> dict[str, Any]:
    heads = {name: source.heads[name] for name in _HUBERT_HEAD if name in source.heads}
    units, projection = heads.get("label_embs_concat"), heads.get("final_proj.weight")
    several = units is not None and projection is not None and units.size(1) != len(projection)
    random_units = any(name.startswith("random_units.") for name in source.heads)
    if several or random_units or source.setting("model", "label_layers", None):
        heads = {}
    state = _encoder(source) | heads
    dim = source.contents.config["encoder_embed_dim"]
    state.setdefault("final_proj.weight", torch.zeros(_FINAL_DIM, dim))
    state.setdefault("final_proj.bias", torch.zeros(len(state["final_proj.weight"])))
    return state


def _data2vec_state(source: ExportSource) -> dict[str, Any]:
    encoder = _encoder(source)
    heads = {name: source.heads[name] for name in _PROJECTION if name in source.heads}
    state: dict[str, Any] = encoder | heads
    dim = source.contents.config["encoder_embed_dim"]
    state.setdefault("final_proj.weight", torch.zeros(dim, dim))
    state.setdefault("final_proj.bias", torch.zeros(dim))
    # Without a teacher it begins as the student, as in fairseq.
    teacher = dict(source.teacher) or {
        name.removeprefix("encoder."): tensor.clone()
        for name, tensor in encoder.items()
        if name.startswith("encoder.")
    }
    if any(name.startswith("encoder.") for name in teacher):  # a whole model, with a head
        teacher = {name: teacher[name] for name in teacher if not name.startswith(_UNIT_HEADS)}
        for name in _PROJECTION:
            teacher.setdefault(name, state[name].clone())
    state["_ema"] = teacher
    return state


def _label_rate(source: ExportSource) -> float:
    grid = conv_grid(parse_conv_layers(source.contents.config["conv_feature_layers"]))
    return float(source.setting("task", "label_rate", source.contents.sample_rate / grid.hop))


def _model(source: ExportSource, model: str, state: dict[str, Any]) -> dict[str, Any]:
    shared = _TRAINING + (_HUBERT if model == "hubert" else _DATA2VEC)
    known = source.settings.get("model", {})
    fields = {
        "_name": model,
        **source.contents.config,
        **{name: known[name] for name in shared if known.get(name) is not None},
    }
    if model == "hubert":
        del fields["pos_conv_depth"]
        # With one set of units the shapes are the same either way.
        fields |= {"untie_final_proj": True, "label_rate": _label_rate(source)}
        return fields | {"final_dim": len(state["final_proj.weight"])}
    whole = any(name.startswith("encoder.") for name in state["_ema"])
    return {
        "ema_anneal_end_step": 30000,
        **fields,
        "max_update": source.setting("optimization", "max_update", 0),
        f"{known.get('target_norm', 'instance')}_norm_target_layer": True,
        "ema_transformer_only": not whole,
        "ema_layers_only": bool(known.get("ema_layers_only", True)) and not whole,
    }


def _check(source: ExportSource, path: Path, model: str, name: str) -> str:
    from fairseq import checkpoint_utils

    if model == "data2vec_audio":
        if find_spec("fairseq.examples") is None or find_spec(DATA2VEC) is None:
            return "not checked, because this fairseq comes without its data2vec example"
        import_module(DATA2VEC)
    # Without gradients, fairseq can copy a weight-normed convolution into a teacher.
    with torch.no_grad():
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)])
        ours = build_encoder(source.contents, "fp32", "off").eval()
        waveform, _ = check.waveforms(ours.grid)
        found = _hidden_states(models[0].eval(), waveform)
        largest = check.compare(ours.layers(waveform)[1:], found, name)
    return (
        f"checked with fairseq's {type(models[0]).__name__}: {len(found)} layers differ by "
        f"{largest:.1e} at most"
    )


def _hidden_states(model: Any, waveform: Tensor) -> list[Tensor]:
    """Return the output of each Transformer layer of a stock model, `[B, frames, D]`."""
    found: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _layer, _in, out: found.append(out[0].transpose(0, 1)))
        for layer in model.encoder.layers
    ]
    features = model.feature_extractor(waveform)
    model(waveform, padding_mask=None, mask=False, features_only=True)
    for hook in hooks:
        hook.remove()
    # fairseq pads to an even number of frames.
    return [x[:, : features.size(-1)] for x in found]
