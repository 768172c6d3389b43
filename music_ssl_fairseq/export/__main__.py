"""`python -m music_ssl_fairseq.export`: a trained encoder for transformers, fairseq, ONNX, ..."""

import argparse
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from music_ssl_fairseq.cli import exit_status, new_parser
from music_ssl_fairseq.errors import InputError

DESCRIPTION = """\
Write the encoder of a checkpoint in a format of other software, and check the result against the
original by running both. A checkpoint is whatever music_ssl_fairseq.load takes: fairseq's (ours and
stock), a Hugging Face folder, torchaudio's state dict.

formats:
  huggingface  a folder for AutoModel.from_pretrained: config.json, model.safetensors,
               preprocessor_config.json and a model card, README.md
  fairseq      checkpoint.pt for stock fairseq's HubertModel or Data2VecAudioModel, with the
               pre-training head and data2vec's teacher
  torchaudio   model.pt for torchaudio.models.hubert_base or wav2vec2_model
  onnx         model.onnx: waveforms of any batch size and length to all layers
  torch        model.pt2, the same for torch.export.load
"""

EXAMPLES = """\
examples:
  python -m music_ssl_fairseq.export --to exported/my-model \\
    --checkpoint runs/music_hubert/config/checkpoints/checkpoint_best.pt
  python -m music_ssl_fairseq.export --checkpoint exported/my-model --to onnx --format onnx
"""

FORMATS = {
    "huggingface": (
        "hugging_face",
        "write",
        ("config.json", "model.safetensors", "preprocessor_config.json", "README.md"),
    ),
    "fairseq": ("fairseq", "write", ("checkpoint.pt",)),
    "torchaudio": ("torchaudio", "write", ("model.pt", "wav2vec2_model.json")),
    "onnx": ("graph", "write_onnx", ("model.onnx",)),
    "torch": ("graph", "write_torch", ("model.pt2",)),
}
"""Name on the command line: module of this package, function, and the files that it writes."""

GRAPHS = ("onnx", "torch")
"""Formats of graphs; the others name a class of other software."""


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = new_parser("music_ssl_fairseq.export", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="checkpoint to export; a Hugging Face model is a folder",
    )
    add("--to", type=Path, required=True, metavar="DIR", help="folder to write to")
    add("--format", choices=FORMATS, default="huggingface", help="see above (default: %(default)s)")
    add(
        "--name",
        metavar="NAME",
        help="title of the model card (default: the name of the folder to write to)",
    )
    add("--force", action="store_true", help="overwrite files of an earlier export")
    return parser


def run(checkpoint: Path, to: Path, format: str, name: str | None, force: bool) -> None:
    """Export a checkpoint; see `get_parser` for the arguments.

    Raises:
        InputError: if the checkpoint cannot be used or exported, or files are in the way.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # so that the command prints its own lines alone
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            line = _export(checkpoint, to, format, name, force)
    finally:
        logging.disable(disabled)
    print(line)


def _export(checkpoint: Path, to: Path, format: str, name: str | None, force: bool) -> str:
    module, function, files = FORMATS[format]
    if not force:
        _refuse_to_overwrite(to, files)
    if to.exists() and not to.is_dir():
        raise InputError(f"{to}: is a file; name a folder to write to")
    package = "music_ssl_fairseq.export"
    write = getattr(import_module(f"{package}.{module}"), function)
    source = import_module(f"{package}.source").read(checkpoint)
    if source.contents.config["pitch_bands"] and format not in GRAPHS:
        raise InputError(
            f"{checkpoint}: has pitch filters (model.pitch_bands), and no model class of {format} "
            f"has them; use --format {' or '.join(GRAPHS)}, or music_ssl_fairseq.load"
        )
    temporary = _beside(to)
    temporary.mkdir(parents=True)
    try:
        checked = write(source, temporary, name or to.resolve().name)
        written = sorted(path.name for path in temporary.iterdir())
        _move(temporary, to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return f"{to}: {source.contents.family} as {format}: {', '.join(written)}\n  {checked}"


def _beside(target: Path) -> Path:
    """Return a temporary folder on the target's file system, which may begin with the target."""
    target = target.resolve()
    name = f".{target.name[:100]}.{os.getpid()}.tmp"
    return target / name if target.is_dir() else target.with_name(name)


def _refuse_to_overwrite(to: Path, files: Iterable[str]) -> None:
    there = [file for file in files if (to / file).exists()]
    if there:
        raise InputError(
            f"{to}: has {', '.join(there)} already; --to writes elsewhere; --force would "
            "replace them"
        )


def _move(folder: Path, to: Path) -> None:
    """Move a folder to its place; into one that exists, file by file."""
    if not to.exists():
        os.replace(folder, to)
        return
    for path in sorted(folder.iterdir()):
        os.replace(path, to / path.name)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    arguments = get_parser().parse_args(argv)
    return exit_status(
        lambda: run(**vars(arguments)), arguments.to, "interrupted; nothing was written"
    )


if __name__ == "__main__":
    sys.exit(main())
