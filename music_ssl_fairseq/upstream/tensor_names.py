"""Translate names of the encoder's tensors between fairseq (and us) and transformers.

In either library HuBERT, wav2vec 2.0 and data2vec audio share them, apart from the positional
convolutions. torchaudio has transformers' names under two more prefixes.
"""

import re

# fairseq's, transformers'. "#" is a number, "*" the last part of the name. Of two lines with the
# same right side the first belongs to a group norm, the second to layer norms in the extractor; of
# two with the same left side, the first is written.
_PAIRS = (
    ("feature_extractor.conv_layers.#.0.*", "feature_extractor.conv_layers.#.conv.*"),
    ("feature_extractor.conv_layers.#.2.*", "feature_extractor.conv_layers.#.layer_norm.*"),
    ("feature_extractor.conv_layers.#.2.1.*", "feature_extractor.conv_layers.#.layer_norm.*"),
    ("layer_norm.*", "feature_projection.layer_norm.*"),
    ("post_extract_proj.*", "feature_projection.projection.*"),
    ("mask_emb", "masked_spec_embed"),
    ("encoder.pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"),
    (
        "encoder.pos_conv.0.weight_g",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    ),
    (
        "encoder.pos_conv.0.weight_v",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    ),
    # From before torch had parametrizations; much of the hub still has them.
    ("encoder.pos_conv.0.weight_g", "encoder.pos_conv_embed.conv.weight_g"),
    ("encoder.pos_conv.0.weight_v", "encoder.pos_conv_embed.conv.weight_v"),
    ("encoder.pos_conv.#.0.*", "encoder.pos_conv_embed.layers.#.conv.*"),
    ("encoder.layer_norm.*", "encoder.layer_norm.*"),
    ("encoder.layers.#.self_attn.q_proj.*", "encoder.layers.#.attention.q_proj.*"),
    ("encoder.layers.#.self_attn.k_proj.*", "encoder.layers.#.attention.k_proj.*"),
    ("encoder.layers.#.self_attn.v_proj.*", "encoder.layers.#.attention.v_proj.*"),
    ("encoder.layers.#.self_attn.out_proj.*", "encoder.layers.#.attention.out_proj.*"),
    ("encoder.layers.#.self_attn_layer_norm.*", "encoder.layers.#.layer_norm.*"),
    ("encoder.layers.#.fc1.*", "encoder.layers.#.feed_forward.intermediate_dense.*"),
    ("encoder.layers.#.fc2.*", "encoder.layers.#.feed_forward.output_dense.*"),
    ("encoder.layers.#.final_layer_norm.*", "encoder.layers.#.final_layer_norm.*"),
)


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\#", r"(\d+)").replace(r"\*", "(weight|bias)")
    return re.compile(escaped)


_RULES = [(_pattern(ours), ours, _pattern(theirs), theirs) for ours, theirs in _PAIRS]


def _fill(template: str, parts: tuple[str, ...]) -> str:
    remaining = iter(parts)
    return re.sub(r"[#*]", lambda _: next(remaining), template)


def to_transformers(name: str) -> str | None:
    """Return transformers' name of a tensor of ours; None if it is not part of the encoder."""
    for ours, _, _, template in _RULES:
        if match := ours.fullmatch(name):
            return _fill(template, match.groups())
    return None


def from_transformers(name: str, layer_norms: bool) -> str | None:
    """Return our name of a tensor of transformers; None if it is not part of the encoder.

    The name is without the prefix of models with a head, such as `hubert.`. With `layer_norms`, the
    extractor's norms are layer norms (extractor_mode layer_norm).
    """
    for _, template, theirs, _ in _RULES:
        if match := theirs.fullmatch(name):
            if layer_norms and template.endswith(".2.*"):
                continue
            return _fill(template, match.groups())
    return None
