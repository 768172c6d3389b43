"""Settings whose values make no sense are refused by name."""

from dataclasses import fields

import pytest
from fairseq.optim.lr_scheduler.polynomial_decay_schedule import PolynomialDecayLRScheduleConfig
from fairseq.optim.lr_scheduler.tri_stage_lr_scheduler import TriStageLRScheduleConfig
from omegaconf import OmegaConf

from hydra_plugins._music_ssl_fairseq_refusals import settings
from music_ssl_fairseq.criterions.music2vec import Music2VecCriterionConfig
from music_ssl_fairseq.criterions.music_hubert import MusicHubertCriterionConfig
from music_ssl_fairseq.data.run_identity import settings_identity
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.models.music2vec import Music2VecConfig
from music_ssl_fairseq.models.music_hubert import MusicHubertConfig
from music_ssl_fairseq.optim.muon import MuonConfig
from music_ssl_fairseq.probing.config import HeadGridConfig, ProbingTaskConfig
from music_ssl_fairseq.runtime.settings import _LISTS, _OF_FAIRSEQ, check_ranges
from music_ssl_fairseq.tasks.pretraining import MusicHubertPretrainingConfig
from tests import EXAMPLES

GROUPS = {
    "task": (MusicHubertPretrainingConfig, ProbingTaskConfig),
    "model": (MusicHubertConfig, Music2VecConfig, HeadGridConfig),
    "criterion": (MusicHubertCriterionConfig, Music2VecCriterionConfig),
    "optimizer": (MuonConfig,),
    "lr_scheduler": (PolynomialDecayLRScheduleConfig, TriStageLRScheduleConfig),
}


def test_there_are_such_settings():
    known = settings(EXAMPLES / "probing", "config")  # and all of fairseq's
    for group, configs in GROUPS.items():
        known |= {f"{group}.{field.name}" for config in configs for field in fields(config)}
        for config in configs:
            check_ranges(OmegaConf.create({group: OmegaConf.structured(config)}), {group: config})
    named = [name for names in _OF_FAIRSEQ.values() for name in names.split()]
    assert {*named, *_LISTS} - known == set()
    assert len(named) == len(set(named)) > 20


def test_a_run_may_go_on_with_other_settings_that_change_no_result():
    cfg = {"data": "a", "crop_seconds": 5.0, "seed": 1, "mask_prob": 0.65, "_name": "x"}
    found = settings_identity({"task": cfg}, {"task": MusicHubertPretrainingConfig})
    assert found == {"task.crop_seconds": "5.0", "task.seed": "1", "task._name": "x"}
    assert len(settings_identity({"task": cfg}, {})) == 5


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("task.crop_seconds", float("nan"), "nan: expected a finite number"),
        ("some.field", [1.0, float("inf")], "[1.0,inf]: expected a finite number"),
        ("dataset.batch_size_valid", 0, "0: expected a number from 1 on"),
        ("model.mask_prob", 0.0, "0.0: expected a number above 0, at most 1"),
        ("model.learning_rates", [0.1, -1.0], "[0.1,-1.0]: expected a number above 0"),
        ("optimization.update_freq", [], "[]: expected at least one number"),
        ("model.mask_length", 0, "0: expected a number from 1 on"),
        ("model.projection_size", 1, "1: expected a number from 2 on"),
        ("model.dropout", 1.0, "1.0: expected a number from 0 to below 1"),
        ("task.mix_prob", 2.0, "2.0: expected a number from 0 to 1"),
        ("optimization.max_epoch", -1, "-1: expected 0 or a number above"),
        ("optimizer.adam_betas", "(0.9,1)", "(0.9,1): expected two numbers from 0 to below 1"),
        ("optimizer.adam_betas", "0.9", "0.9: expected two numbers from 0 to below 1"),
        ("criterion.loss_scale", -1.0, "-1.0: expected a number above 0"),
    ],
)
def test_values_that_make_no_sense(name, value, expected):
    cfg = OmegaConf.create({"model": {"dropout": 0.1, "upstream": "${model.none}"}, "ema": None})
    group, _, field = name.partition(".")
    owners = [c for c in GROUPS.get(group, ()) if field in c.__dataclass_fields__]
    configs = {group: owners[0]} if owners else {}
    check_ranges(cfg, configs)
    OmegaConf.update(cfg, name, value)
    with pytest.raises(InputError) as error:
        check_ranges(cfg, configs)
    assert str(error.value) == f"{name}={expected}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv_pos_groups", "a divisor of model.encoder_embed_dim=64"),
        ("decoder_groups", "a divisor of model.encoder_embed_dim=64"),
        ("decoder_dim", "a divisor of model.decoder_dim=7"),
    ],
)
def test_heads_and_groups_divide_the_width(name, expected):
    cfg = {"encoder_embed_dim": 64, "encoder_attention_heads": 4, "conv_pos_groups": 4}
    cfg |= {"encode": "visible", "decoder_dim": 32, "decoder_groups": 8, name: 7}
    with pytest.raises(InputError, match=f"_groups=[78]: expected {expected}"):
        check_ranges(OmegaConf.create({"model": cfg}), {})
