"""Read the tensors of a Hugging Face folder in any of its formats; nothing is executed."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.texts import read_object
from music_ssl_fairseq.runtime.unpickling import GIT_LFS, utf8_name
from music_ssl_fairseq.upstream.safe_load import safe_load

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read every tensor of a model, under transformers' names; safetensors are preferred.

    Raises:
        InputError: if there are none, or they are damaged or incomplete, or would run code.
    """
    weights: dict[str, Tensor] = {}
    for path in _files(folder):
        weights |= _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return weights


def _files(folder: Path) -> list[Path]:
    for name in (SAFETENSORS, PICKLE):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    raise InputError(f"{folder}: neither {SAFETENSORS} nor {PICKLE} in it")


def _shards(index: Path) -> list[Path]:
    try:
        names = set(read_object(index)["weight_map"].values())
        # An index from the internet must not point out of its folder.
        return [index.with_name(Path(name).name) for name in sorted(names)]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: not an index of weights") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            if file.read(len(GIT_LFS)) == GIT_LFS:
                raise InputError(
                    f"{path}: a Git LFS pointer: fetch the file itself with `git lfs pull`"
                )
        with utf8_name(path) as name:
            return load_file(name)
    except FileNotFoundError:
        raise InputError(f"{path}: missing, but the index of weights names it") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: truncated, damaged or no safetensors ({error}): copy or download it again"
        ) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    loaded = safe_load(path)
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: holds no tensors by name")
    return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}
