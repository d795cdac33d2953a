"""The serving core reads no clock, draws no lots and does no I/O; and imports run one way.

Held twice: by reading the source, and by running the core in an interpreter where all of that is taken away.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import argus_sim

PACKAGE = Path(argus_sim.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
PURE = [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] in ("core", "policies")]

#: Frameworks, clocks, luck, other threads, and the world outside.
IMPURE = {
    *("simpy", "asyncio", "torch", "aiohttp", "fastapi"),
    *("time", "datetime", "random", "secrets", "uuid", "threading", "multiprocessing", "concurrent", "signal"),
    *("os", "sys", "io", "pathlib", "shutil", "tempfile", "socket", "subprocess", "logging", "urllib", "pickle"),
}
#: Built-ins and methods that read, write or ask.
IMPURE_CALLS = {"open", "input", "print", "exec", "eval", "read_text", "read_bytes", "write_text", "write_bytes"}

#: From the inside out: who may import whom. Those that stand together may import each other.
LAYERS = (
    {"errors", "domain", "__version__"},
    {"columns", "files", "provenance", "record", "textfile"},
    {"importers", "profile", "similarity", "trace"},
    {"core"},
    {"policies"},
    {"live", "simulation", "workload"},
    {"metrics"},
    {"report"},
    {"experiment"},
    {"fidelity", "load", "real_workers", "serve", "validate_live"},
    {"cli"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
#: The same inside of ``experiment``, each above those before it; but ``Experiment.run`` runs, and gives results.
EXPERIMENT = (
    *(
        "settings",
        "sections",
        "config",
        "foreign",
        "scene",
        "cache_setup",
        "planning_times",
        "simulate",
        "basis",
        "lockfile",
    ),
    *("folder", "conclude", "sweep", "results", "rehearsal", "runner", "sizing"),
)
UPWARDS = {("config", "runner"), ("config", "results")}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that a source file imports, at any depth, as written."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import hides where it leads"
            assert node.module is not None
            if node.module in ("argus_sim", "argus_sim.experiment"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def rank(module: str) -> int:
    return RANK[module.split(".")[1]]


ids = [module_of(path) for path in PURE]


@pytest.mark.parametrize("path", PURE, ids=ids)
def test_core_and_policies_import_nothing_impure(path: Path) -> None:
    assert not {name for name in imports(path) if name.split(".")[0] in IMPURE}


@pytest.mark.parametrize("path", PURE, ids=ids)
def test_core_and_policies_call_nothing_impure(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            assert called not in IMPURE_CALLS, f"{path.name}:{node.lineno}"
        # Random numbers come from a generator that the policy is given; np.random.seed and the like are global.
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random"):
            assert node.attr == "Generator", f"{path.name}:{node.lineno}"
        assert not isinstance(node, ast.Global), f"{path.name}:{node.lineno}"


def test_every_module_has_its_layer() -> None:
    there = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}
    assert there - {"__init__"} == {*RANK} - {"__version__"}


def test_domain_stands_alone() -> None:
    ours = {name for name in imports(PACKAGE / "domain.py") if name.startswith("argus_sim")}
    assert ours <= {"argus_sim.errors"}


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.parent != PACKAGE or p.stem != "__init__"], ids=module_of
)
def test_imports_run_one_way(path: Path) -> None:
    """The package's own ``__init__`` is left out: it may re-export anything."""
    mine = module_of(path)
    for name in imports(path):
        if name.split(".")[0] != "argus_sim":
            continue
        assert rank(name) <= rank(mine), f"{mine} imports {name}"


@pytest.mark.parametrize("name", EXPERIMENT)
def test_imports_run_one_way_in_experiment(name: str) -> None:
    """Its modules name each other, never the package: that has them all."""
    assert {path.stem for path in (PACKAGE / "experiment").glob("*.py")} == {*EXPERIMENT, "__init__"}
    below = EXPERIMENT[: EXPERIMENT.index(name)]
    for imported in imports(PACKAGE / "experiment" / f"{name}.py"):
        if imported.startswith("argus_sim.experiment"):
            other = imported.split(".")[2]
            assert other in below or (name, other) in UPWARDS, f"{name} imports {imported}"


#: Real workers run the very pipelines that were calibrated, and prompts and images are judged as they were.
RUNS_WHAT_WAS_CALIBRATED = {f"argus_sim.live.{name}" for name in ("zoo", "painter", "librarian", "scoring")}


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_the_simulator_does_not_import_calibration(path: Path) -> None:
    allowed = {"calibration"} if module_of(path) in RUNS_WHAT_WAS_CALIBRATED else set()
    assert not {name for name in imports(path) if name.split(".")[0] in {"calibration", "torch"} - allowed}


#: Run in a process of its own. Third parties may import what they like, but ours may not, and once the engine is
#: built nobody may read a clock or a file.
WITHOUT = """
import builtins, importlib, sys

for name in ("simpy", "torch", "calibration"):
    sys.modules[name] = None
impure, modules = set({impure!r}), {modules!r}
real = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    who = (globals or {{}}).get("__name__", "")
    if who.startswith(("argus_sim.core", "argus_sim.policies")) and name.split(".")[0] in impure:
        raise ImportError(f"{{who}} imports {{name}}")
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
for module in modules:
    importlib.import_module(module)

import io, os, time
import numpy as np
from argus_sim.domain import CacheHit
from tests.make_engine import make_engine, make_policy, make_requests
from tests.make_profile import ladder

def refuse(*args, **kwargs):
    raise AssertionError("a clock or a file was asked for")

profile = ladder()
engines = []
for name, params in (("static", {{}}), ("clipper-ht", {{}}), ("nirvana", {{"thresholds": {{10: 0.7, 25: 0.9}}}}),
                     ("proteus", {{}}), ("pac", {{}}), ("argus", {{}})):
    policy = make_policy(name, profile, 2, **params)
    engines.append(make_engine(policy, make_requests([0.0, 0.0, 1.0], 12.0)))
builtins.open = io.open = os.open = refuse
for clock in ("time", "monotonic", "perf_counter", "process_time", "time_ns", "monotonic_ns", "sleep"):
    setattr(time, clock, refuse)
for engine in engines:
    engine.start()
    for row in range(3):
        for command in engine.arrive(1.0 + row, row):
            if type(command).__name__ == "LookUpCache":
                engine.cache_answered(1.0 + row, row, CacheHit(0.8, 25, 0.1))
    engine.tick(30.0)
    engine.worker_lost(31.0, 0)
    engine.worker_joined(32.0, 0)
    assert engine.arrived == 3
sys.stdout.write("pure")
"""


def test_the_core_runs_where_all_that_is_missing() -> None:
    script = WITHOUT.format(impure=sorted(IMPURE), modules=[module_of(path) for path in PURE])
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "pure"), run.stderr
