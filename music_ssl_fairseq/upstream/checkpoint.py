"""Read fairseq checkpoints, ours and stock, old and new."""

import contextlib
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.frames import SAMPLE_RATE
from music_ssl_fairseq.upstream.contents import FAMILIES, Contents, architecture, encoder_state

_REQUIRED = {
    "layer_type": ("transformer", "its layers are {}"),
    "activation_fn": ("gelu", "its activation is {}"),
    "conv_pos_batch_norm": (False, "its positional convolution has a batch norm"),
    "quantize_input": (False, "its encoder reads quantised input"),
}
"""Settings that change what fairseq's encoder computes, and the only value that ours knows."""


def is_checkpoint(loaded: Any) -> bool:
    """Tell whether loaded data have the form of a fairseq checkpoint."""
    return isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping)


def from_checkpoint(loaded: Any, path: Path) -> Contents:
    """Return the contents of a fairseq checkpoint that `safe_load` has read from `path`.

    music_hubert and music2vec; stock HubertModel, Data2VecAudioModel and Wav2Vec2Model, with
    settings in `cfg` (a dict or OmegaConf) or, in old files, in `args` (argparse.Namespace).

    Raises InputError if it holds another architecture. `is_checkpoint` must be true of it.
    """
    with damaged_settings(path):
        settings = settings_of(loaded, path)
        model, task = settings.get("model", {}), settings.get("task", {})
        family = _family(model, path)
        for name, (known, reason) in _REQUIRED.items():
            value = model.get(name)
            if value is not None and value != known:
                raise InputError(
                    f"{path}: another architecture than music_hubert's and music2vec's: "
                    f"{reason.format(value)}"
                )
        return Contents(
            family=family,
            config=architecture(model, str(path)),
            state=encoder_state(loaded["model"]),
            normalise=bool(task.get("normalize") or False),
            sample_rate=int(task.get("sample_rate") or SAMPLE_RATE),
            origin=str(path),
        )


@contextlib.contextmanager
def damaged_settings(path: Path) -> Iterator[None]:
    """Turn errors about malformed settings into one line."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: its settings are damaged ({reason:.120})") from None


def settings_of(loaded: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """Return fairseq's configuration by sections; old files have one (`args`) for all sections.

    Raises InputError if the checkpoint has none.
    """
    if loaded.get("cfg") is not None:
        return {name: _plain(section) for name, section in _plain(loaded["cfg"]).items()}
    if loaded.get("args") is not None:
        return dict.fromkeys(("model", "task", "optimization"), _plain(loaded["args"]))
    raise InputError(
        f"{path}: has a model but no settings (neither `cfg` nor `args`), so its architecture is "
        "not known"
    )


def _plain(settings: Any) -> dict[str, Any]:
    """Return settings of any fairseq version as a dict; interpolations stay unresolved."""
    if isinstance(settings, DictConfig):
        # Interpolations (label_rate: ${task.label_rate}) may point outside of what was kept.
        settings = OmegaConf.to_container(settings, resolve=False)
    if isinstance(settings, Namespace):
        settings = vars(settings)
    return dict(settings) if isinstance(settings, Mapping) else {}


def _family(model: Mapping[str, Any], path: Path) -> str:
    name = str(model.get("arch") or model.get("_name") or "")  # of `args`, _name is the task
    if name not in FAMILIES:
        found = f"a model called {name!r}" if name else "a model without a name"
        hint = "; give the checkpoint it was fine-tuned from" if "ctc" in name else ""
        raise InputError(
            f"{path}: holds {found}, another architecture than {', '.join(FAMILIES)}{hint}"
        )
    return name
