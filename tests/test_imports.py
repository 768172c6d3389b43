"""The direction of imports: who may know whom."""

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("music_ssl_fairseq", "manifests_tools", "hydra_plugins")
FOUNDATION = {"errors", "runtime", "frames", "audio"}

# Room -> the rooms of ours that it may import, beside itself and those above. A room is a module or
# a folder of the package. Data passes through the rooms in this order; each imports earlier ones
# only, so there is no cycle. Nothing that trains imports label or manifests_tools.
ALLOWED = {
    "hydra_plugins": set(),
    "errors": {"hydra_plugins"},
    "runtime": {"hydra_plugins", "errors"},
    "frames": {"errors"},
    "audio": {"errors", "frames"},
    "cli": {"hydra_plugins", "errors", "runtime"},
    "compat": {"errors", "runtime"},
    "pages": {"errors", "runtime"},
    "data": FOUNDATION | {"compat"},
    "jobs": FOUNDATION,
    "fast": {"frames", "runtime"},
    "bands": {"errors", "fast", "frames"},
    "modules": FOUNDATION | {"bands", "compat", "fast"},
    "upstream": FOUNDATION | {"compat", "fast", "modules"},
    "features": FOUNDATION | {"jobs", "upstream"},
    "label_report": FOUNDATION | {"data", "features", "jobs", "pages"},
    "label": FOUNDATION | {"hydra_plugins", "cli", "data", "features", "jobs", "label_report"},
    "extract": FOUNDATION | {"cli", "data", "fast", "features", "jobs", "upstream"},
    "export": FOUNDATION | {"cli", "compat", "modules", "upstream"},
    "probing": FOUNDATION | {"compat", "data", "features", "jobs", "upstream"},
    "manifests_tools": FOUNDATION | {"hydra_plugins", "cli", "data", "jobs", "probing"},
    "report": FOUNDATION | {"cli", "pages", "probing"},
    "probe": {"hydra_plugins", "errors", "cli", "probing", "report", "runtime"},
    "map": FOUNDATION | {"cli", "data", "jobs", "manifests_tools", "pages", "probing"},
    "models": FOUNDATION | {"bands", "compat", "fast", "modules", "probing"},
    "criterions": FOUNDATION | {"compat", "probing"},
    "optim": FOUNDATION | {"compat"},
    "training": FOUNDATION | {"hydra_plugins", "compat"},
    "__main__": {"cli"},  # names the modules of the commands, and imports the one that is asked for
    "tasks": FOUNDATION
    | {"compat", "criterions", "data", "features", "models", "optim", "probing", "training"}
    | {"upstream"},
}

# Library -> the only modules, or rooms, that use it. convert writes audio, and reads none.
USERS = {
    "soundfile": ("music_ssl_fairseq.audio.libsndfile", "manifests_tools.convert"),
    "av": ("music_ssl_fairseq.audio.pyav",),
    "faiss": ("music_ssl_fairseq.label",),
    "librosa": ("music_ssl_fairseq.runtime.imports",),
}


def name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """`music_ssl_fairseq.data.crops` -> `data`, `manifests_tools.find` -> `manifests_tools`."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "music_ssl_fairseq" else package


def imports(file: Path) -> set[str]:
    """Every module imported anywhere in a file, in functions too; `from a import b` gives a.b."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}, line {node.lineno}: import it by its full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _module(imported: str) -> str:
    """The file that an import comes from: `a.b` itself, or `a`, which defines b."""
    return imported if imported in modules() else imported.rpartition(".")[0]


@functools.cache
def modules() -> dict[str, set[str]]:
    """Return what each module imports, read once: not by each process that collects tests."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {name(file): imports(file) for file in files}


def test_modules_import_only_the_rooms_below_their_own():
    wrong = {
        (module, imported)
        for module, found in modules().items()
        for imported in found
        if module != "music_ssl_fairseq" and imported.startswith(PACKAGES)
        if room(imported) not in ALLOWED[room(module)] | {room(module)}
    }
    assert wrong == set()


def test_rooms_import_earlier_rooms_alone():
    order = list(ALLOWED)
    for room_, others in ALLOWED.items():
        assert {other for other in others if order.index(other) >= order.index(room_)} == set()


def test_what_is_allowed_is_used():
    used = {(room(m), room(i)) for m, found in modules().items() for i in found}
    granted = {(a, b) for a, others in ALLOWED.items() for b in others - FOUNDATION}
    assert granted - used == set()


def test_no_files_import_each_other_in_a_circle():
    graph = {module: {_module(i) for i in found} - {module} for module, found in modules().items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


def test_hydra_plugins_share_one_module_with_the_package():
    """They are loaded in every program of hydra, before the package may be imported."""
    others = {m: found for m, found in modules().items() if room(m) != "hydra_plugins"}
    used = {_module(i) for found in others.values() for i in found if room(i) == "hydra_plugins"}
    assert used == {"hydra_plugins._music_ssl_fairseq_command"}


def test_what_commands_import_of_fairseq_comes_after_compat():
    """Otherwise fairseq sets the root logger to DEBUG, and prints about tensorboardX."""
    users = {m for m, found in modules().items() if any(i.startswith("fairseq.") for i in found)}
    users = {m for m in users if room(m) != "hydra_plugins"}  # run in fairseq's commands
    with_package = {m: modules()[m] | modules()[f"music_ssl_fairseq.{room(m)}"] for m in users}
    without = {m for m, found in with_package.items() if not any("compat" in i for i in found)}
    # Behind modules or tasks
    trained = {"data.crop_config", "data.masks", "data.pretraining_dataset"}
    trained.add("export.fairseq")
    trained |= {"probing.config", "probing.dataset", "probing.heads.adam"}
    trained.add("probing.train_and_score")
    assert without - {"music_ssl_fairseq.compat"} == {f"music_ssl_fairseq.{m}" for m in trained}


def test_dispatch_is_the_door_of_fast():
    used = {
        imported.removeprefix("music_ssl_fairseq.fast.").partition(".")[0]
        for module in modules()
        if room(module) != "fast"
        for imported in modules()[module]
        if imported.startswith("music_ssl_fairseq.fast")
    }
    assert used == {"dispatch"}


@pytest.mark.parametrize("library", USERS)
def test_one_place_knows_a_library(library: str):
    users = {
        module
        for module, imported in modules().items()
        if any(other.partition(".")[0] == library for other in imported)
    }
    assert [user for user in sorted(users) if not user.startswith(USERS[library])] == []
