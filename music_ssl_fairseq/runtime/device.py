"""Choose where models run."""

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.runtime.typed import with_option


def choose_device(asked: str = "auto") -> str:
    """Return the device that is asked for, as torch names it; `auto` is a GPU if there is one.

    Raises:
        InputError: if a GPU is asked for and there is none.
    """
    if asked == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda" if asked == "auto" else asked
    if asked != "auto":
        again = with_option("--device", "cpu")
        raise InputError(f"--device {asked}: torch finds no GPU here", again)
    return "cpu"
