"""Call a command's `run` from Python, with the parser's defaults for options that are left out."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any


def with_defaults(command: Any) -> Callable[..., Any]:
    """Return `run` of a module, or of a builder, as a function of options by name or in order.

    One process works, unless `workers` is given.
    """
    actions = [action for action in command.get_parser()._actions if action.dest != "help"]
    defaults = {action.dest: action.default for action in actions}
    if "workers" in defaults:
        defaults["workers"] = 1

    def run(*values: Any, **options: Any) -> Any:
        options |= dict(zip(defaults, values, strict=False))
        assert options.keys() <= defaults.keys()
        return command.run(Namespace(**defaults | options))

    return run
