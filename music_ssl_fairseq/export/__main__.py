"""`python -m music_ssl_fairseq export`: a trained encoder for transformers, fairseq, ONNX, ..."""

import argparse
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from music_ssl_fairseq.cli import BEGINS, CHECKPOINT, Parser, exit_status, new_parser
from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.hub import RESULTS, UNITS, describe, push
from music_ssl_fairseq.runtime.user_command import beside, with_option

if TYPE_CHECKING:
    from music_ssl_fairseq.upstream.contents import Contents

UNIT_FILES = (f"{UNITS}/centroids.npy", f"{UNITS}/metadata.json")

DESCRIPTION = """\
Write the encoder of a checkpoint in a format of other software, and check the result against the
original by running both.

formats:
  huggingface  a folder for AutoModel.from_pretrained: config.json, model.safetensors,
               preprocessor_config.json and a model card, README.md. Encoders that transformers does
               not have, as those of `harmonic`, are for music_ssl_fairseq.load alone
  fairseq      checkpoint.pt for stock fairseq's HubertModel or Data2VecAudioModel, with the
               pre-training head and data2vec's teacher
  torchaudio   model.pt for torchaudio.models.hubert_base or wav2vec2_model
  onnx         model.onnx: waveforms of any batch size and length to all layers
  torch        model.pt2, the same for torch.export.load

--push puts a Hugging Face folder on the hub, where music_ssl_fairseq.load and transformers find it.
"""

EXAMPLES = """\
examples:
  python -m music_ssl_fairseq export --to exported/my-model \\
    --checkpoint runs/music_hubert/config/checkpoints/checkpoint_best.pt
  python -m music_ssl_fairseq export --checkpoint exported/my-model --to onnx --format onnx
  python -m music_ssl_fairseq export --checkpoint runs/music_hubert/config --push USER/NAME \\
    --report report --units labels --dry-run
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
"""Name on the command line: module, imported when it is wanted; function; files that it writes."""


def get_parser() -> Parser:
    parser = new_parser("music_ssl_fairseq export", DESCRIPTION, EXAMPLES)
    add = parser.option
    add("--checkpoint FILE", f"the model: {CHECKPOINT}", type=Path, required=True)
    add("--to DIR", "folder to write to; not needed with --push", type=Path)
    add("--format", "see above", default="huggingface", choices=FORMATS)
    add(
        "--name NAME",
        "title of the model card (default: the name of the folder to write to, or on the hub)",
    )
    add(
        "--report DIR",
        "folder of a report: its rows of this model go into the card, as a table with the "
        "layer to take for each task, and into results.json",
        type=Path,
    )
    add(
        "--units DIR",
        "folder of labels: its centroids go into units/, to label other music with",
        type=Path,
    )
    add(
        "--push USER/NAME",
        "put the folder on the Hugging Face hub, as a new commit; a new model has your "
        "account's default visibility",
    )
    add("--dry-run", "list what --push would send, and send nothing", action="store_true")
    add("--force", "overwrite files of an earlier export", action="store_true")
    return parser


def run(a: argparse.Namespace) -> None:
    """Export a checkpoint, and push it; see `get_parser` for the arguments.

    Raises InputError if the checkpoint cannot be used or exported, files are in the way, or the hub
    refuses.
    """
    _check(a)
    with ExitStack() as stack:
        disabled = logging.root.manager.disable
        stack.callback(logging.disable, disabled)
        logging.disable(logging.WARNING)  # so that the command prints its own lines alone
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        title = a.push.rpartition("/")[2] if a.push else None
        temporary = "" if a.to else stack.enter_context(TemporaryDirectory())
        to = a.to or Path(temporary, title or "")
        line = _export(a, to, a.name or title or to.resolve().name)
        print(f"{a.to or a.push}: {line}")
        files = sorted(_files(a))
        if a.push and a.dry_run:
            print(describe(to, files, a.push))
        elif a.push:
            print(f"pushed: {push(to, files, a.push, f'Export of {a.checkpoint.name}')}")


def _check(a: argparse.Namespace) -> None:
    if not (a.to or a.push):
        message = "give --to DIR, a folder to write to, or --push USER/NAME"
        raise InputError(message, with_option("--to", "exported/my-model"))
    if a.dry_run and not a.push:
        raise InputError("--dry-run goes with --push USER/NAME")
    for name in ("push", "report", "units"):
        if getattr(a, name) and a.format != "huggingface":
            raise InputError(f"--{name} goes with --format huggingface, not with {a.format}")
    if a.push and not re.fullmatch(r"[\w.-]+/[\w.-]+", a.push):
        raise InputError(f"--push {a.push}: expected USER/NAME")
    for name, given in (("--to", a.to and str(a.to.resolve())), ("--name", a.name)):
        if given and given != given.encode(errors="replace").decode():
            raise InputError(f"{name} {given}: is not UTF-8, and other software refuses it")
    if a.to and a.to.exists() and not a.to.is_dir():
        raise InputError(f"{a.to}: is a file; name a folder to write to")
    there = [file for file in _files(a) if a.to and (a.to / file).exists()]
    if there and not a.force:
        raise InputError(
            f"{a.to}: has {', '.join(there)} already; --to writes elsewhere; --force would "
            "replace them",
            with_option("--to", beside(a.to)),
        )


def _files(a: argparse.Namespace) -> list[str]:
    """Return the files that an export writes."""
    files = list(FORMATS[a.format][2])
    files += [RESULTS] if a.report else []
    return files + (list(UNIT_FILES) if a.units else [])


def _export(a: argparse.Namespace, to: Path, name: str) -> str:
    from music_ssl_fairseq.export.source import read

    module, function, _ = FORMATS[a.format]
    write = getattr(import_module(f"music_ssl_fairseq.export.{module}"), function)
    source = read(a.checkpoint)
    beside = [name for name in ("pitch_bands", "mel_bands") if source.contents.config[name]]
    if beside and a.format in ("fairseq", "torchaudio"):
        raise InputError(
            f"{a.checkpoint}: has {' and '.join(f'model.{name}' for name in beside)} beside the "
            f"extractor, and no model of {a.format} has them; use --format "
            "huggingface, for music_ssl_fairseq.load alone, or onnx or torch",
            with_option("--format", "huggingface"),
        )
    # On the target's file system, and within it if it exists.
    there, name_there = to.resolve(), f".{to.resolve().name[:100]}.{os.getpid()}.tmp"
    temporary = (there if there.is_dir() else there.parent) / name_there
    temporary.mkdir(parents=True)
    try:
        checked = write(source, temporary, name)
        if a.report or a.units:
            _add(a, source.contents, temporary, f"hf:{a.push}" if a.push else str(to))
        written = sorted(_relative_paths(temporary))
        _move(temporary, to)
        for other in {RESULTS, *UNIT_FILES} - {*written} if a.format == "huggingface" else ():
            (to / other).unlink(missing_ok=True)  # of the model that was here before
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return f"{source.contents.family} as {a.format}: {', '.join(written)}\n  {checked}"


def _add(a: argparse.Namespace, contents: "Contents", folder: Path, name: str) -> None:
    from music_ssl_fairseq.export import additions

    sections = [additions.add_results(contents, folder, a.report)] if a.report else []
    sections += [additions.add_units(contents, folder, a.units, name)] if a.units else []
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8")
    if a.report:
        text = text.replace("- **Evaluation**: none was made in writing this card.\n", "")
    before, heading, after = text.partition("## Training\n")
    added = "".join(f"{section}\n" for section in sections)
    card.write_text(f"{before}{added}{heading}{after}", encoding="utf-8")


def _relative_paths(folder: Path) -> Iterator[str]:
    """Iterate over the files below a folder."""
    return (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _move(folder: Path, to: Path) -> None:
    """Move a folder to its place; into one that exists, file by file."""
    if not to.exists():
        os.replace(folder, to)
        return
    for name in sorted(_relative_paths(folder)):
        (to / name).parent.mkdir(exist_ok=True)
        os.replace(folder / name, to / name)


def main(argv: list[str] | None = None) -> int:
    arguments = get_parser().parse_args(argv)
    where = arguments.to or "the temporary folder"
    return exit_status(lambda: run(arguments), where, BEGINS)


if __name__ == "__main__":
    sys.exit(main())
