"""The study's table of rows: what each is, what it needs, and its digest."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from hydra_plugins._music_ssl_fairseq_refusals import merged
from music_ssl_fairseq.errors import InputError

EXAMPLES = Path(__file__).parents[1]
FIELDS = {
    *("family", "config", "overrides", "corpus", "labels", "init", "seeds", "audio_seconds"),
    *("encoder", "random"),
}
TINY = {
    "model.conv_feature_layers": "'[(24,10,5)] + [(24,3,2)] * 4 + [(24,2,2)] * 2'",
    **{"model.encoder_embed_dim": 32, "model.encoder_ffn_embed_dim": 64},
    **{"model.encoder_attention_heads": 4, "model.conv_pos_groups": 4, "dataset.batch_size": 4},
    **{"task.crop_seconds": 1, "task.min_seconds": 1, "criterion.stop_if_collapsed": "false"},
}
"""Overrides of a miniature: as many layers as the real models, since targets count them."""
TINY_AUDIO_SECONDS, TINY_CLUSTERS = 24, 20


@dataclass(frozen=True)
class Row:
    """One row of the table for one seed.

    Attributes:
        encoder: a front end, for a floor.
        random: the row whose encoder to judge with random weights. One update of it makes a
            checkpoint of the same shape.
        overrides: settings by their dotted names, in the order of the command.
        init: the row whose weights to start from.
    """

    name: str
    seed: int
    family: str = ""
    config: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    corpus: str = ""
    labels: Sequence[str] = ()
    init: str = ""
    audio_seconds: int = 0
    encoder: str = ""
    random: str = ""

    @property
    def id(self) -> str:
        return f"{self.name}-s{self.seed}"

    @property
    def trained(self) -> bool:
        """Whether what it has learned is judged."""
        return bool(self.family) and not self.random

    def updates(self) -> int:
        """Return the updates that take `audio_seconds` of crops."""
        if self.random:
            return 1
        values = settings(self.family, self.config)
        batch = self.overrides.get("dataset.batch_size", values.dataset.batch_size)
        crop = self.overrides.get("task.crop_seconds", values.task.crop_seconds)
        return max(
            1, round(self.audio_seconds / (batch * crop * values.optimization.update_freq[0]))
        )


@dataclass(frozen=True)
class Table:
    """All rows in order, and the label sets by name."""

    rows: list[Row]
    labels: dict[str, dict[str, Any]]

    def row(self, name: str, seed: int) -> Row:
        """Return the row of this name and seed, or of its first seed."""
        found = [row for row in self.rows if row.name == name]
        return next((row for row in found if row.seed == seed), found[0])

    def source_of(self, labels: str) -> Row | None:
        """Return the row whose features a label set is made of: its first seed, for all seeds."""
        name = self.labels[labels].get("checkpoint")
        return self.row(name, 0) if name else None

    def needs(self, row: Row) -> list[Row]:
        """Return the rows whose checkpoints this one takes."""
        deep = [source for name in row.labels if (source := self.source_of(name))]
        return [*([self.row(row.init, row.seed)] if row.init else []), *deep]

    def ancestors(self, row: Row) -> list[Row]:
        """Return the rows that it needs, and those that they need, which come first."""
        direct = self.needs(row)
        return [*(x for other in direct for x in self.ancestors(other)), *direct]

    def made_of(self, row: Row, data: Mapping[str, str]) -> dict[str, Any]:
        """Say what decides a row's weights: settings, labels, corpora, and rows before it.

        Args:
            data: digest of each corpus.
        """
        configuration = settings(row.family, row.config) if row.family else {}
        return {
            "row": asdict(row),
            "configuration": OmegaConf.to_container(OmegaConf.create(configuration)),
            "labels": {name: self.labels[name] for name in row.labels},
            "data": {row.corpus: data[row.corpus]} if row.corpus else {},
            "before": {x.id: digest(self.made_of(x, data)) for x in self.needs(row)},
        }


def digest(value: Any) -> str:
    """Digest of anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@functools.cache
def settings(family: str, config: str) -> Any:
    """Return a configuration of examples/, complete."""
    return merged(EXAMPLES / family, config)


def read(file: Path, miniature: bool = False, audio_seconds: int | None = None) -> Table:
    """Read the table.

    Args:
        miniature: tiny models, a few updates and one seed per row.
        audio_seconds: of every row, instead of the table's.

    Raises:
        InputError: if a row has an unknown field, configuration, label set or row.
    """
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(file))
        defaults, labels, rows = found["defaults"], found["labels"], found["rows"]
        families = found["families"]
    except (YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{file}: no table of rows ({error}); see rows.yaml") from None
    made: list[Row] = []
    for name, values in rows.items():
        _check(file, name, values, rows, labels, families)
        random = values.get("random", "")
        values = {**defaults, **(rows[random] if random else values)}
        if "family" not in values:
            made.append(Row(name, 1, encoder=values["encoder"]))
            continue
        seeds, seconds = values.pop("seeds"), audio_seconds or values.pop("audio_seconds")
        values = {key: value for key, value in values.items() if key != "audio_seconds"}
        family = families[values["family"]]
        values["config"] = values.get("config", family["config"])
        values["overrides"] = {**family["overrides"], **values.get("overrides", {})}
        if miniature:
            seconds = audio_seconds or TINY_AUDIO_SECONDS
            values["overrides"] = _tiny(values, values["overrides"])
        if random:
            values |= {"random": random, "init": ""}
        made += [
            Row(name=name, seed=seed, audio_seconds=0 if random else seconds, **values)
            for seed in (seeds[:1] if miniature or random else seeds)
        ]
    if miniature:
        labels = {name: {**one, "k": TINY_CLUSTERS} for name, one in labels.items()}
    return Table(made, labels)


def _check(
    file: Path, name: str, values: Mapping, rows: Mapping, labels: Mapping, families: Mapping
) -> None:
    if unknown := set(values) - FIELDS:
        raise InputError(f"{file}: row {name}: no field {sorted(unknown)[0]!r}")
    if not {"family", "encoder", "random"} & set(values):
        raise InputError(f"{file}: row {name}: needs `family`, `encoder` or `random`")
    sources = [
        labels[x]["checkpoint"]
        for x in values.get("labels", [])
        if x in labels and "checkpoint" in labels[x]
    ]
    for kind, known, used in (
        ("label set", labels, values.get("labels", [])),
        ("row", rows, [*(values[key] for key in ("init", "random") if key in values), *sources]),
        ("family", families, [values["family"]] if "family" in values else []),
    ):
        for one in used:
            if one not in known:
                raise InputError(f"{file}: row {name}: no {kind} {one!r}")


def _tiny(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    tiny = {**overrides, **TINY}
    if values["family"] == "music_hubert":
        tiny |= {"model.final_dim": 16, "lr_scheduler.warmup_updates": 2}
    if "harmonic" in values["config"]:
        tiny |= {"model.pitch_taps": 512, "model.mel_bands": 16}
    if values["config"] == "visible":
        tiny |= {"model.decoder_dim": 32, "model.decoder_groups": 4}
    if overrides.get("model.mel_bands") == 0:
        tiny["model.mel_bands"] = 0
    return tiny
