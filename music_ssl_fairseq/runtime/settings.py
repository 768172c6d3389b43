"""Declare the settings of fairseq's configuration groups."""

from dataclasses import field
from typing import Any


def setting(default: Any, help: str) -> Any:
    """Return a dataclass field with a help text; a list as default is copied per instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})
