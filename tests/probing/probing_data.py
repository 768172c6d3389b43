"""Tiny probing tasks of every kind on audio made on the spot, and fairseq's commands on them."""

import sys
from pathlib import Path

import numpy as np
import soundfile
from fairseq import checkpoint_utils

from music_ssl_fairseq.probing.spec import KINDS, ProbingSpec, write_spec
from music_ssl_fairseq.probing.writer import Example, write_split
from tests import EXAMPLES
from tests.fairseq_commands import compose_quickly

compose_quickly()

RATE = 16_000
SPLITS = {"train": 12, "valid": 6, "test": 6}
KEYS = ("A minor", "C major", "G major")
LABELS = {
    "multi-class": ("high", "low", "middle"),
    "multi-label": ("high", "low", "noisy"),
    "key": KEYS,
    "regression": ("loudness", "pitch"),
    "beats": (),
}


def write_audio(folder: Path, clips: int, seconds: float = 2.0) -> None:
    """`i.wav` for each clip: a tone of one of three pitches, pulsing twice a second."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * RATE)) / RATE
    for i in range(clips):
        pitch = (200, 500, 1200)[i % 3] * rng.uniform(0.97, 1.03)
        pulse = np.exp(-6 * ((time - 0.1) % 0.5))
        wave = 0.3 * np.sin(2 * np.pi * pitch * time) * pulse
        wave += (0.05 if i % 2 else 0.002) * rng.standard_normal(len(time))
        soundfile.write(folder / f"{i}.wav", wave.astype(np.float32), RATE)


def label(kind: str, i: int) -> tuple[str, ...]:
    """Of clip `i` of `write_audio`."""
    if kind == "multi-label":
        names = ("low", "middle", "high")[i % 3 :: 3]
        return (*(name for name in names if name != "middle"), *(["noisy"] * (i % 2)))
    if kind == "regression":
        return f"{i % 2 + 0.01 * i}", f"{i % 3 + 0.02 * i}"
    if kind == "beats":
        return tuple(f"{beat:.2f}/{j % 2 + 1}" for j, beat in enumerate((0.1, 0.6, 1.1, 1.6)))
    names = KEYS if kind == "key" else ("low", "middle", "high")
    return (names[i % 3],)


def write_probing(
    folder: Path, audio: Path, kind: str, name: str = "tiny", clips_a_group: int = 1, **fields
) -> Path:
    """A task's folder over the clips of `write_audio`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = "targets" if kind == "regression" else "classes"
    metric = KINDS[kind].choosing[0]
    task = {"name": name, "kind": kind, "metric": metric, names: LABELS[kind], **fields}
    write_spec(folder, ProbingSpec(**task))
    first = 0
    for split, count in SPLITS.items():
        examples = [
            Example(
                f"{i}.wav",
                soundfile.info(audio / f"{i}.wav").frames,
                label(kind, i),
                group=f"{split} {(i - first) % (count // clips_a_group)}",
            )
            for i in range(first, first + count)
        ]
        write_split(folder, split, audio, examples)
        first += count
    return folder


def train(data: Path, upstream: Path | str, run: Path, *overrides: str, name: str = "config"):
    """`fairseq-hydra-train --config-dir examples/probing --config-name NAME ...`."""
    from fairseq_cli import train as fairseq_train
    from fairseq_cli.hydra_train import cli_main

    import music_ssl_fairseq
    from music_ssl_fairseq.training.interruption import interruption

    music_ssl_fairseq.register()
    # A new process would not have these: they live in attributes of functions.
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    vars(fairseq_train.should_stop_early).clear()
    sys.argv = [
        "fairseq-hydra-train",
        *("--config-dir", str(EXAMPLES / "probing"), "--config-name", name),
        *(f"model.upstream={upstream}", f"task.data={data}", f"hydra.run.dir={run}"),
        *overrides,
    ]
    try:
        cli_main()
    finally:
        interruption.release()


def validate(data: Path, run: Path, *options: str, split: str = "test") -> None:
    """`fairseq-validate DATA --path RUN/checkpoints/checkpoint_best.pt ...`, as in the README."""
    from fairseq_cli.validate import cli_main

    sys.argv = [
        "fairseq-validate",
        str(data),
        *("--path", str(run / "checkpoints/checkpoint_best.pt")),
        *("--user-dir", str(EXAMPLES.parent / "music_ssl_fairseq"), "--task", "music_probing"),
        *("--valid-subset", split, "--batch-size", "64", *options),
    ]
    cli_main()
