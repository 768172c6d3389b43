"""Front ends: a waveform becomes `[frames, dimension]` float32 at a stated frame rate.

`FeatureSpec` names the features, and for a model's layer its checkpoint. `front_end` makes the
front end, and imports its module only then. `features.chunk_features` applies it to a file of any
length.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from music_ssl_fairseq.errors import InputError
from music_ssl_fairseq.features.framewise import Concatenation, Framewise, SideBySide
from music_ssl_fairseq.runtime.user_command import (
    newest_run,
    with_options,
    with_other,
    with_word,
)
from music_ssl_fairseq.upstream import read
from music_ssl_fairseq.upstream.find_checkpoint import locate

if TYPE_CHECKING:
    from music_ssl_fairseq.features.deep import Deep

FRONT_ENDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mfcc": ("mfcc", "Mfcc", {}),
    "mfcc60": ("mfcc", "Mfcc", {"num_ceps": 20}),
    "logmel": ("kaldi", "LogMel", {}),
    "chroma": ("cqt", "Chroma", {}),
    "cqt": ("cqt", "Cqt", {}),
}
"""Name on the command line: module of this package, class, arguments. `a+b` joins several."""

DEEP = "deep"
"""The name of a model's layer, which needs a checkpoint as well."""


FrontEnd: TypeAlias = "Framewise | Deep"
"""Turns 16 kHz audio into features: the methods of `Framewise`, which `Deep` has as well."""


@dataclass(frozen=True)
class FeatureSpec:
    """Features by name, with all that a process needs to make their front end.

    Raises InputError if there are no such features, or `deep` lacks what it needs.
    """

    # A name of `FRONT_ENDS`, several joined by `+`, or `deep`. Names separated by commas (not
    # `deep`) are computed side by side and not scaled.
    name: str = "mfcc"
    # For `deep`, a name that `upstream.load` takes; here, the model's file or folder
    checkpoint: str | None = None
    # For `deep`, 0 for the projected extractor output, then the Transformer's layers
    layer: int | None = None
    # For `deep`, where the model runs, as torch names it. Not part of what the features are.
    device: str = "cpu"

    def __post_init__(self):
        parts = self.parts
        unknown = [part for part in parts if part not in FRONT_ENDS and part != DEEP]
        if unknown:
            raise InputError(
                f"no features called {unknown[0]!r}; there are: {', '.join(FRONT_ENDS)}, "
                f"several of these joined by +, and {DEEP}",
                with_word(unknown[0], FRONT_ENDS) or with_other("--features", "mfcc"),
            )
        if DEEP in parts and len(parts) > 1:
            raise InputError(
                f"{self.name}: {DEEP} cannot be joined with others, because the frame rate is its "
                "model's (50 per second in HuBERT, the others 100), and so is the scale",
                with_other("--features", "+".join(part for part in parts if part != DEEP)),
            )
        if any(len(set(names.split("+"))) < names.count("+") + 1 for names in self.sets) or len(
            set(self.sets)
        ) < len(self.sets):
            raise InputError(f"{self.name}: names the same features twice")
        given = {"--checkpoint": self.checkpoint, "--layer": self.layer}
        for option, value in given.items():
            if self.name == DEEP and value is None:
                raise InputError(f"--features {DEEP} needs {option}", self._with_model())
            if self.name != DEEP and value is not None:
                raise InputError(
                    f"{option} goes with --features {DEEP}, not with {self.name}",
                    with_options({option: None}),
                )
        if self.layer is not None and self.layer < 0:
            right = with_other("--layer", 0)
            raise InputError(f"--layer {self.layer}: layers are counted from 0", right)
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", str(locate(self.checkpoint)))

    def _with_model(self) -> str:
        """Return the command with a model and its middle layer, or without a model if none is."""
        checkpoint = self.checkpoint or newest_run()
        if not checkpoint:
            return with_options({"--features": "mfcc", "--checkpoint": None, "--layer": None})
        layer = read(checkpoint).config["encoder_layers"] // 2 if self.layer is None else self.layer
        return with_options({"--checkpoint": checkpoint, "--layer": layer})

    @property
    def parts(self) -> list[str]:
        """The single features of all sets."""
        return self.name.replace(",", "+").split("+")

    @property
    def sets(self) -> list[str]:
        """The names that are separated by commas: mostly one."""
        return self.name.split(",")

    @property
    def modules(self) -> list[str]:
        """Modules of the front end, for a parent process to import before it forks."""
        names = (part if part == DEEP else FRONT_ENDS[part][0] for part in self.parts)
        return [f"{__name__}.{name}" for name in dict.fromkeys(names)]


@lru_cache(maxsize=1)
def front_end(features: FeatureSpec | str) -> FrontEnd:
    """Make a front end, or take the one made before, as a checkpoint takes seconds to load.

    A name alone is enough for all features but `deep`.

    Raises InputError if there are no such features, checkpoint or layer.
    """
    if isinstance(features, str):
        features = FeatureSpec(features)
    if features.checkpoint is not None and features.layer is not None:
        deep = import_module(f"{__name__}.deep")
        return deep.Deep(features.checkpoint, features.layer, features.device)
    fronts = {name: _joined(name) for name in features.sets}
    return fronts[features.name] if len(fronts) == 1 else SideBySide(fronts)


def _joined(names: str) -> Framewise:
    parts: dict[str, Framewise] = {}
    for part in names.split("+"):
        module, name, arguments = FRONT_ENDS[part]
        parts[part] = getattr(import_module(f"{__name__}.{module}"), name)(**arguments)
    return parts[names] if len(parts) == 1 else Concatenation(parts)
