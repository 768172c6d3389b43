"""Write the model card: facts that a checkpoint records, and blanks to fill in."""

import math
from importlib.resources import files
from typing import Any

import yaml

from music_ssl_fairseq.export.source import ExportSource
from music_ssl_fairseq.frames import conv_grid, parse_conv_layers
from music_ssl_fairseq.upstream.contents import Contents
from music_ssl_fairseq.upstream.hugging_face import takes_padding

_OBJECTIVES = {
    "music_hubert": "musicHuBERT: it predicts the K-means units of masked frames of music (HuBERT, "
    "arXiv 2106.07447, on music, arXiv 2307.05161)",
    "music2vec": "music2vec: it predicts, for masked frames of music, the layers of a moving "
    "average of itself on the whole crop (data2vec, arXiv 2202.03555, on music, arXiv 2307.05161)",
    "hubert": "HuBERT (arXiv 2106.07447)",
    "data2vec_audio": "data2vec audio (arXiv 2202.03555)",
    "wav2vec2": "wav2vec 2.0 (arXiv 2006.11477)",
}
_TAGS = {"HubertModel": "hubert", "Wav2Vec2Model": "wav2vec2"}
_TAGS |= {"Data2VecAudioModel": "data2vec-audio"}
# Sections of fairseq's configuration that say how a model was trained.
_SECTIONS = ("task", "dataset", "model", "criterion", "optimization", "optimizer", "lr_scheduler")
_DATASET = ("batch_size", "max_tokens")


def _text(file: str) -> str:
    return files(__package__).joinpath(file).read_text("utf-8")


def model_card(source: ExportSource, name: str, model: str | None) -> str:
    """Return the README.md of a Hugging Face folder.

    Args:
        name: the title.
        model: the class in transformers; None if this package alone loads the folder.
    """
    contents = source.contents
    config = contents.config
    layers, dim, rate = config["encoder_layers"], config["encoder_embed_dim"], contents.sample_rate
    grid = conv_grid(parse_conv_layers(config["conv_feature_layers"]))
    stack = model == "Data2VecAudioModel"
    use = _text("card_transformers.md" if model else "card_own.md").format(
        rate=rate,
        layers=layers,
        dim=dim,
        batches=_batches(contents),
        count=layers + 1,
        frames=grid.num_frames(5 * rate),
        fairseq_layer=f"`extract_features(..., {'layer=n - 1' if stack else 'output_layer=n'})`",
        last=_LAST.format(layers=layers) if config["layer_norm_first"] else "",
        first_norm="" if config["layer_norm_first"] else " and normalised",
    )
    return _text("card.md").format(
        library="transformers" if model else "music_ssl_fairseq",
        tag=_TAGS.get(model or "", contents.family),
        name=name,
        objective=_OBJECTIVES[contents.family],
        needs=f"It is a `{model}` of transformers and needs no other code."
        if model
        else "No model of transformers is such an encoder: the package music_ssl_fairseq loads it.",
        rate=rate,
        normalised="at zero mean and unit variance (`do_normalize: true`)"
        if contents.normalise
        else "as it is in the file (`do_normalize: false`)",
        frame_rate=rate / grid.hop,
        layers=layers,
        dim=dim,
        parameters=sum(tensor.numel() for tensor in contents.state.values()) / 1e6,
        updates=f"{source.num_updates} updates" if source.num_updates else "not recorded",
        audio=_audio_per_update(source),
        units=_units(source),
        use=use,
        labels="- **Labels**: from which features and which audio the units were made.\n"
        if contents.family == "music_hubert"
        else "",
        settings=_training_settings(source),
    )


_PADDED = """Pass it a list of waveforms and
`padding=True` for a padded batch with an attention mask."""

_ALONE = """**Pass the model one waveform at a
time, or several of the same length, never a padded batch**: {reason}, so that
the features of a shorter waveform would be wrong, with an attention mask or without."""


_LAST = """ (From transformers 5.16 on
that holds for `hidden_states[{layers}]` too, and `last_hidden_state` is it after the final layer
norm; before, both are after the norm.)"""


def _batches(contents: Contents) -> str:
    """Return the card's sentence about padding."""
    if takes_padding(contents):
        return _PADDED
    group_norm = contents.config["extractor_mode"] == "default"
    return _ALONE.format(
        reason="its group norm takes its statistics over the padding"
        if group_norm
        else "its positional convolutions see the padding"
    )


def _units(source: ExportSource) -> str:
    """Return the number of units that heads predict, of all sets."""
    heads = source.heads
    embeddings = heads.get("label_embs_concat")
    projection = heads.get("unit_proj.weight", heads.get("final_proj.weight"))
    if embeddings is None or projection is None:
        return "none"
    sets = len(projection) // embeddings.size(1)
    drawn = 0  # sets of random projections
    if any(name.startswith("random_units.") for name in heads):
        drawn = int(source.setting("model", "projection_sets", 1))
    # fairseq's dictionaries begin with four symbols that are no units.
    units = len(embeddings) - 4 * (sets - drawn)
    return f"{units} in {sets} sets" if sets > 1 else f"{units}"


def _audio_per_update(source: ExportSource) -> str:
    """Describe the seconds of audio per update: crop x batch x accumulated batches x processes."""
    factors = [
        source.setting("task", "crop_seconds"),
        source.setting("dataset", "batch_size"),
        (source.setting("optimization", "update_freq") or [None])[0],
        source.setting("distributed_training", "distributed_world_size"),
    ]
    if any(not isinstance(factor, int | float) for factor in factors):
        return "not recorded"
    crop, batch, accumulated, processes = factors
    return (
        f"{math.prod(factors):g} s ({crop:g} s x {batch} crops x {accumulated} batches x "
        f"{processes} processes)"
    )


def _training_settings(source: ExportSource) -> str:
    """Return fairseq's configuration as YAML, without paths and settings of a machine."""
    chosen: dict[str, dict[str, Any]] = {}
    for section in _SECTIONS:
        values = source.settings.get(section, {})
        public = {name: value for name, value in values.items() if _is_public(section, name, value)}
        # Old files have one set of settings for everything.
        if public and public not in chosen.values():
            chosen[section] = public
    if not chosen:
        return "- **Settings** of the training."
    text = yaml.safe_dump(chosen, sort_keys=True, width=96)
    return f"Settings of the training (fairseq's configuration):\n\n```yaml\n{text}```"


def _is_public(section: str, name: str, value: Any) -> bool:
    if value is None or (section == "dataset" and name not in _DATASET):
        return False
    # Paths and interpolations.
    if isinstance(value, str):
        return "/" not in value and "${" not in value
    return isinstance(value, bool | int | float | list | tuple)
