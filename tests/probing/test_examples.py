"""The folder that a probe's run gets."""

import pytest

from hydra_plugins.music_ssl_fairseq_config import _slug


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("runs/music2vec/short/checkpoints/checkpoint_best.pt", "music2vec_short_checkpoint_best"),
        ("random:runs/a/checkpoints/last.pt", "random_a_last"),
        ("random:/x/runs/music2vec/short/checkpoints/last.pt", "random_music2vec_short_last"),
        ("/models/hubert base/", "models_hubert_base"),
        ("mfcc", "mfcc"),
        ("mfcc+chroma", "mfcc+chroma"),
    ],
)
def test_a_run_s_folder_is_named_after_its_upstream(path, folder):
    assert _slug(path) == folder
