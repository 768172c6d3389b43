"""Refuse a misspelt configuration or setting in two lines: what is wrong, and a command that works.

hydra prints its search path, or fairseq's stack.
"""

import functools
import logging
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins._music_ssl_fairseq_command import (
    FULL_DISK,
    LISTS,
    LISTS_OF_ONE,
    hydra_text,
    hydra_word,
    is_ours,
    shell_line,
    typed,
    with_settings,
)

_MAX_LINE = 400
"""Characters of an unexpected error's message."""


def _refuse(message: str, command: Sequence[str]) -> NoReturn:
    """End in two lines: what is wrong, and a command that works."""
    print(f"error: {message}\n{shell_line(shlex.join(command))}", file=sys.stderr)
    raise SystemExit(1)


def refuse_run_folder(folder: str) -> None:
    """Refuse a folder of the run that cannot be made, or written to."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        elsewhere = os.path.join(os.path.expanduser("~"), "runs", os.path.basename(folder))
        command = with_settings(f"hydra.run.dir={elsewhere}")
        _refuse(f"hydra.run.dir={folder}: {error.strerror}", command)


def refuse_gpu_settings(config: Any) -> None:
    """Refuse settings of fairseq that work on a GPU alone."""
    names = ("fp16", "bf16", "memory_efficient_fp16", "memory_efficient_bf16", "amp", "profile")
    for key in (f"common.{name}" for name in names):
        if OmegaConf.select(config, key):
            _refuse(f"{key}=true: there is no GPU, which it needs", with_settings(f"{key}="))


def end_failed(error: BaseException) -> None:
    """Write an unexpected error's traceback to the log of the run, and end in two lines.

    Nothing is done without a log, or if HYDRA_FULL_ERROR is set. Our own `InputError` is expected.
    """
    if hasattr(error, "lines"):
        raise SystemExit(f"error: {error.lines}")
    logs = [log for log in logging.getLogger().handlers if isinstance(log, logging.FileHandler)]
    if not logs or "HYDRA_FULL_ERROR" in os.environ:
        return
    file = os.path.relpath(logs[0].baseFilename)
    if isinstance(error, OSError) and error.errno in FULL_DISK:  # where no log can be written
        folder = os.path.dirname(error.filename or file) or os.curdir
        _refuse(f"{folder}: {error.strerror}", ["df", "-h", folder])
    trace = "".join(traceback.format_exception(error))
    record = {"name": __name__, "levelno": logging.ERROR, "levelname": "ERROR", "msg": "%s"}
    for log in logs:
        log.handle(logging.makeLogRecord({**record, "args": (trace,)}))
    line = " ".join(traceback.format_exception_only(error)[-1].split())
    line = line if len(line) < _MAX_LINE else f"{line[:_MAX_LINE]} ..."
    _refuse(f"{line}; the log has the traceback", ["tail", "-n", "40", file])


def merged(folder: str | os.PathLike, name: str) -> Any:
    """Merge a configuration of a folder with those that it builds on, as hydra does."""
    config: Any = OmegaConf.load(os.path.join(folder, f"{name}.yaml"))
    names = (base for base in config.pop("defaults", []) if base not in ("_self_", "run_folder"))
    return OmegaConf.merge(*(merged(folder, base) for base in names), config)


def settings(folder: str, name: str) -> set[str]:
    """Return the dotted names of a configuration's settings, with those of fairseq."""
    from fairseq.dataclass.configs import FairseqConfig

    groups = vars(FairseqConfig()).items()
    theirs = {group: getattr(v, "__dataclass_fields__", None) for group, v in groups}
    ours: Any = OmegaConf.to_container(merged(folder, name))
    return {
        f"{group}.{key}"
        for groups in (theirs, ours)
        for group, keys in groups.items()
        if isinstance(keys, Mapping)
        for key in keys
    }


def _compose(hydra: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Compose the configuration; say in two lines what cannot be overridden."""
    from hydra._internal.utils import get_args_parser
    from hydra.errors import ConfigCompositionException, OverrideParseException

    try:
        return original(hydra, *args, **kwargs)
    except OverrideParseException as error:
        _refuse_a_word(str(error).splitlines()[0])
        raise
    except ConfigCompositionException as error:
        given, _ = get_args_parser().parse_known_args()
        folder, name = given.config_dir, (given.config_name or "config").removesuffix(".yaml")
        if not folder or not is_ours(folder):
            raise
        _refuse_a_number_for_a_list(error)
        found = re.match(r"Could not override '([^']+)'", str(error))
        if found is None:
            _refuse_a_setting(error, given.overrides)
            raise
        key, known = found[1], settings(folder, name)
        near = get_close_matches(key, known, 1, 0.8)
        listing = ["fairseq-hydra-train", "--config-dir", folder, "--config-name", name]
        _refuse(
            f"{key}: no such setting" + (f"; {near[0]} is one" if near else "; to list all, run"),
            [word.replace(key, near[0]) for word in typed()]
            if near
            else [*listing, "--cfg", "job"],
        )


def _refuse_a_word(reason: str) -> None:
    """Refuse the first word that hydra cannot read, and show the command with quotes around it."""
    from hydra._internal.utils import get_args_parser
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    given, _ = get_args_parser().parse_known_args()
    before = ""
    for word in given.overrides:
        try:
            OverridesParser.create().parse_override(word)
        except HydraException:
            words = typed()
            at = words.index(word)
            path = f"{before.partition('=')[2]} {word}"
            if "=" in word:
                words[at] = _quoted(word)
                _refuse(f"{word}: hydra needs quotes within the quotes of the shell", words)
            if os.path.exists(path):
                words[at - 1 : at + 1] = [hydra_word(f"{before} {word}")]
                _refuse(f"{path}: a name with spaces needs quotes", words)
            if not given.config_name and os.path.isfile(f"{given.config_dir}/{word}.yaml"):
                words[at:at] = ["--config-name"]
                _refuse(f"{word}: a configuration; its option is missing", words)
            _refuse(f"{word}: {reason}; expected key=value", words[:at] + words[at + 1 :])
        before = word


def _refuse_a_setting(error: Exception, overrides: Sequence[str]) -> None:
    """Refuse the setting that hydra's message names: several values, or one of a wrong type."""
    wrong = next((word for word in overrides if word.removeprefix("~") in str(error)), "")
    if not wrong:
        return
    words = [word for word in typed() if word != wrong]
    if not str(error).startswith("Ambiguous value"):
        reason = str(error.__cause__ or error).splitlines()[0]
        _refuse(f"{wrong}: {reason.rstrip('.')}; without it the command runs", words)
    key, _, value = wrong.partition("=")
    if key in LISTS:
        _refuse(f"{wrong}: a list needs brackets", [*words, f"{key}=[{value}]"])
    if key == "dataset.valid_subset":
        _refuse(f"{wrong}: several splits need quotes", [*words, f'{key}="{value}"'])
    values = ",".join(f"[{one}]" for one in value.split(",")) if key in LISTS_OF_ONE else value
    at = next(i for i, word in enumerate(typed()) if word in overrides)
    swept = [f"{key}={values}" if word == wrong else word for word in typed()]
    swept.insert(at, "-m")
    _refuse(f"{wrong}: a sweep over values needs -m, and a list brackets", swept)


def _quoted(setting: str) -> str:
    """Return `key=value` with quotes around the value, or around each item of a plain list."""
    key, _, value = setting.partition("=")
    if re.fullmatch(r"\[(?!\()[^][]*\]", value):
        items = (hydra_text(item.strip()) for item in value[1:-1].split(","))
        return f"{key}=[{','.join(items)}]"
    return f"{key}={hydra_text(os.path.expanduser(value))}"  # the shell expands no ~ after =


def _refuse_a_number_for_a_list(error: Exception) -> None:
    """Refuse `optimization.lr=0.1`, which must be `optimization.lr=[0.1]`."""
    cause = error.__cause__ or error.__context__ or error
    key = getattr(cause, "full_key", None)
    if "is not a ListConfig" in str(cause) and key:
        right = [re.sub(rf"^({re.escape(key)})=(.*)$", r"\1=[\2]", word) for word in typed()]
        _refuse(f"{key}: a list of values, in brackets", right)


@functools.cache
def patch_refusals() -> None:
    """Let hydra and fairseq refuse a setting, or its value, in two lines."""
    from fairseq_cli import hydra_train, train
    from hydra._internal.hydra import Hydra

    hydra: Any = Hydra
    hydra.compose_config = functools.partialmethod(_compose, hydra.compose_config)
    hydra_train.add_defaults = functools.partial(_add_defaults, hydra_train.add_defaults)
    # Called again after the user_dir is imported, for the models and tasks that it registers.
    train.add_defaults = functools.partial(_add_defaults, train.add_defaults, is_checked=True)


def _add_defaults(original: Any, config: Any, is_checked: bool = False) -> None:
    """Add fairseq's defaults, which checks the types of values, and refuse names that it lacks.

    `is_checked`: fairseq's own groups have been checked.
    """
    from fairseq.dataclass.configs import FairseqConfig

    try:
        original(config)
        if is_checked:
            _refuse_before_the_task(config)
        else:
            known = OmegaConf.structured(FairseqConfig())
            groups = {name: config[name] for name in config if name in known}
            OmegaConf.unsafe_merge(known, groups)  # changes `known` alone
    except OmegaConfBaseException as error:
        key, reason = str(error.full_key), str(error).splitlines()[0]
        given = [word for word in sys.argv if re.match(rf"\+*[\w.]*\b{re.escape(key)}=", word)]
        named = [word for word in sys.argv if re.match(r"\+*\w+\._name=", word)]
        if not (given or named):
            raise
        what = given[0] if given else f"{named[0]}: of another family than the configuration, {key}"
        wrong = given or named
        _refuse(
            f"{what}: {reason}; without it the command runs",
            [word for word in typed() if word not in wrong],
        )


def _refuse_before_the_task(config: Any) -> None:
    """Refuse two settings on which fairseq fails before our task exists.

    The task checks the others.
    """
    seed, most = config.common.seed, 2**32 - 1
    if not 0 <= seed <= most:
        _refuse(
            f"common.seed={seed}: expected a number from 0 to {most}", with_settings("common.seed=")
        )
    if config.dataset.batch_size is None and config.dataset.max_tokens is None:
        name = "dataset.batch_size"
        _refuse(f"{name}=null: expected a number from 1 on", with_settings(f"{name}="))
