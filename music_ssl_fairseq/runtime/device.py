"""Choose where models run."""

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.typed import with_option


def choose_device(asked: str = "auto") -> str:
    """Return `cpu` or `cuda`; `auto` is a GPU if there is one.

    Raises:
        InputError: if `cuda` is asked for and there is none.
    """
    if asked == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise InputError("--device cuda: torch finds no GPU here", with_option("--device", "cpu"))
    return "cpu"
