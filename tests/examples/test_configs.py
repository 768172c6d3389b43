"""Fields and the YAML that sets them: hydra refuses an override of a key that a YAML lacks."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from music_ssl_fairseq.criterions.music2vec import Music2VecCriterionConfig
from music_ssl_fairseq.criterions.music_hubert import MusicHubertCriterionConfig
from music_ssl_fairseq.models.music2vec import Music2VecConfig
from music_ssl_fairseq.models.music_hubert import MusicHubertConfig
from music_ssl_fairseq.probing.config import HeadGridConfig, ProbingTaskConfig
from music_ssl_fairseq.tasks.pretraining import MusicHubertPretrainingConfig, PretrainingConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
FAMILIES = {
    "music_hubert": (MusicHubertPretrainingConfig, MusicHubertConfig, MusicHubertCriterionConfig),
    "music2vec": (PretrainingConfig, Music2VecConfig, Music2VecCriterionConfig),
    "probing": (ProbingTaskConfig, HeadGridConfig),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_can_be_overridden(family):
    config = yaml.safe_load((EXAMPLES / family / "config.yaml").read_text())
    for section, cls in zip(("task", "model", "criterion"), FAMILIES[family], strict=False):
        for field in dataclasses.fields(cls):
            follows_another = str(field.default).startswith("${")
            assert field.name in config[section] or follows_another or field.name == "_name"
