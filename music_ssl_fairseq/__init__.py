"""Self-supervised pre-training on music: music2vec and musicHuBERT as a fairseq plugin.

With fairseq's command lines, `common.user_dir` (or `--user-dir`) is all it takes: fairseq imports
`tasks/` and `models/`, and these register

    tasks       music2vec_pretraining, music_hubert_pretraining, music_probing
    models      music2vec, music_hubert, music_probe
    criterions  music2vec, music_hubert, music_probe

Importing the package alone registers nothing and costs nothing, so that command lines such as
`python -m music_ssl_fairseq label` start at once. In Python, call `register()` first.

    model = music_ssl_fairseq.load("runs/music_hubert/short")  # ours or another's: see upstream/
    layers = model.features("song.mp3").layers  # [layers, frames, D]
    vectors = model.embed(paths)  # [songs, D]
"""

from music_ssl_fairseq.upstream import load as load

__version__ = "0.1.0"


def register() -> None:
    """Register the tasks, models and criterions with fairseq, for instance to load a checkpoint."""
    from importlib import import_module

    for task in ("pretraining", "music_probing"):
        import_module(f"{__name__}.tasks.{task}")
