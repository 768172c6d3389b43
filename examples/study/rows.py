"""The study's table of rows: what each is, what it needs, and its digest."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

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
        random: the row whose encoder to judge with random weights.
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

    def updates(self) -> int:
        """Updates that take `audio_seconds` of crops."""
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
        """The row of this name and seed, or of its first seed."""
        found = [row for row in self.rows if row.name == name]
        return next((row for row in found if row.seed == seed), found[0])

    def needs(self, row: Row) -> list[Row]:
        """Rows whose checkpoints this one takes."""
        names = [(name, row.seed) for name in (row.init, row.random) if name]
        deep = [self.labels[name].get("checkpoint") for name in row.labels]
        names += [(name, 0) for name in deep if name]  # one label set for all seeds
        return [self.row(*one) for one in names]

    def digest(self, row: Row, *more: Any) -> str:
        """Digest of all that decides a row: settings, configuration, labels, other rows."""
        parts = [
            asdict(row),
            [self.labels[name] for name in row.labels],
            OmegaConf.to_container(settings(row.family, row.config)) if row.family else None,
            [self.digest(other, *more) for other in self.needs(row)],
            more,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def settings(family: str, config: str) -> Any:
    """Merge a configuration of examples/ with those that it builds on, as hydra does."""
    found = OmegaConf.load(EXAMPLES / family / f"{config}.yaml")
    merged = OmegaConf.create()
    for name in found.pop("defaults", []):
        if name not in ("_self_", "run_folder"):
            merged = OmegaConf.merge(merged, settings(family, name))
    return OmegaConf.merge(merged, found)


def read(file: Path, miniature: bool = False) -> Table:
    """Read the table.

    Args:
        miniature: tiny models, a few updates and one seed per row.

    Raises:
        InputError: if a row has an unknown field, configuration, label set or row.
    """
    found = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(found, dict)
    labels, rows, families = found["labels"], found["rows"], found["families"]
    made: list[Row] = []
    for name, values in rows.items():
        _check(file, name, values, rows, labels, families)
        values = {**found["defaults"], **values}
        seeds, audio_seconds = values.pop("seeds"), values.pop("audio_seconds")
        if "family" not in values:
            made.append(
                Row(name, 1, encoder=values.get("encoder", ""), random=values.get("random", ""))
            )
            continue
        family = families[values["family"]]
        values["config"] = values.get("config", family["config"])
        overrides = {**family["overrides"], **values.pop("overrides", {})}
        if miniature:
            seeds, audio_seconds, overrides = (
                seeds[:1],
                TINY_AUDIO_SECONDS,
                _tiny(values, overrides),
            )
        made += [
            Row(name=name, seed=seed, audio_seconds=audio_seconds, overrides=overrides, **values)
            for seed in seeds
        ]
    if miniature:
        labels = {name: {**one, "k": TINY_CLUSTERS} for name, one in labels.items()}
    return Table(made, labels)


def _check(
    file: Path, name: str, values: Mapping, rows: Mapping, labels: Mapping, families: Mapping
) -> None:
    if unknown := set(values) - FIELDS:
        raise InputError(f"{file}: row {name}: no field {sorted(unknown)[0]!r}")
    for kind, known, used in (
        ("label set", labels, values.get("labels", [])),
        ("row", rows, [values[key] for key in ("init", "random") if key in values]),
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
        tiny["model.pitch_taps"] = 512
    if values["config"] == "visible":
        tiny |= {"model.decoder_dim": 32, "model.decoder_groups": 4}
    if "model.mel_bands" in overrides:
        tiny["model.mel_bands"] = 16
    return tiny
