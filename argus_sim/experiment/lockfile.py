"""``experiment.lock.yaml``: what a result was made from, and from which the same bytes come again."""

from __future__ import annotations

import hashlib
import inspect
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from argus_sim.core.policy import Policy
from argus_sim.errors import InputError
from argus_sim.experiment.config import Experiment, expand, is_lock
from argus_sim.experiment.scene import Scene
from argus_sim.policies import registry
from argus_sim.simulation.filling import FillingCacheConfig
from argus_sim.trace import find_trace

LOCK = "experiment.lock.yaml"

#: Libraries whose version can change a result's bytes.
_LIBRARIES = ("argus-sim", "numpy", "scipy", "pandas", "pyarrow", "simpy", "scikit-learn", "matplotlib")


def make_lock(scene: Scene, points: Mapping[str, Scene] | None = None) -> dict[str, Any]:
    """The content of ``experiment.lock.yaml``: the resolved experiment, versions, and digests of its inputs.

    Args:
        scene: Of the experiment.
        points: Those of its sweep, by name. Of their inputs those are named that the experiment itself has not.
    """
    inputs = _inputs(scene)
    for name, point in (points or {}).items():
        inputs |= {f"{name}: {what}": d for what, d in _inputs(point).items() if inputs.get(what) != d}
    return {
        "experiment": scene.experiment.model_dump(mode="json"),
        "inputs": inputs,
        "versions": versions(),
    }


def dump_lock(lock: dict[str, Any]) -> bytes:
    """The lock file's bytes."""
    return yaml.safe_dump(lock, sort_keys=False, allow_unicode=True).encode()


def check_inputs(lock: dict[str, Any], digests: Mapping[str, str]) -> None:
    """:class:`InputError` where an input is not what another lock file, with these digests, was made with."""
    for name, digest in digests.items():
        if lock["inputs"].get(name) != digest:
            raise InputError(f"{name} is not what the lock file was made with; its content has changed")


def _inputs(scene: Scene) -> dict[str, str]:
    experiment = scene.experiment
    inputs = {f"profile {scene.profile.name}": scene.profile.digest()}
    for what, file, where in _files(experiment):
        inputs[what] = _digest(expand(file, where=where), where)
    inputs |= {f"kind {kind.name}": kind.hardware.digest() for kind in scene.kinds}
    for trace in (part for whole in experiment.traces for part in whole.parts()):
        if trace.file is not None:
            where = f"experiment {experiment.name!r}: trace {trace.name!r}"
            path = expand(trace.file, where=where)
            path = find_trace(path) if trace.format is None else path
            inputs[f"trace {trace.name}"] = _digest(path, where)
        for key, file in trace.beside().items():
            where = f"experiment {experiment.name!r}: trace {trace.name!r}: {key}"
            inputs[f"trace {trace.name} {key}"] = _digest(expand(file, where=where), where)
    for policy in experiment.policies:
        if sources := _sources(policy.name):
            inputs[f"policy {policy.label}"] = hashlib.sha256(b"".join(sources)).hexdigest()
    return inputs


def _sources(policy: str) -> list[bytes]:
    """The modules that a policy's classes are in; of those that come with argus-sim, its version tells."""
    kinds = [kind for kind in registry.find(policy).__mro__ if issubclass(kind, Policy)]
    modules = dict.fromkeys(kind.__module__ for kind in kinds)
    brought = [sys.modules[name] for name in modules if name.partition(".")[0] != "argus_sim"]
    return [Path(file).read_bytes() for file in map(inspect.getsourcefile, brought) if file is not None]


def _files(experiment: Experiment) -> Iterator[tuple[str, str, str]]:
    """Files beside profile and traces: what they are, where they are, and the place in the experiment."""
    where = f"experiment {experiment.name!r}"
    cache, prompts = experiment.cluster.cache, experiment.prompts
    if isinstance(cache, FillingCacheConfig):
        for key, file in cache.files().items():
            yield f"cache {key}", file, f"{where}: cluster.cache.{key}"
    if prompts is not None and prompts.recorded is not None and prompts.recorded.file is not None:
        yield "prompts recorded", prompts.recorded.file, f"{where}: prompts.recorded.file"


def _digest(path: Path, where: str) -> str:
    """Of a file; of a folder, of the names and digests of all files in it."""
    try:
        if not path.is_dir():
            return hashlib.sha256(path.read_bytes()).hexdigest()
        files = sorted(file for file in path.rglob("*") if file.is_file())
        inside = "".join(f"{file.relative_to(path).as_posix()} {_digest(file, where)}\n" for file in files)
        return hashlib.sha256(inside.encode()).hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", where=where) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", where=where) from None


def versions() -> dict[str, str]:
    """What a result's bytes can depend on beside its inputs."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


@dataclass(frozen=True)
class Lock:
    """What a lock file says beside the experiment; empty of an experiment's own file."""

    inputs: dict[str, str]
    versions: dict[str, str]


def read_lock(path: Path) -> Lock:
    """The digests of the inputs and the versions of the libraries that a lock file was made with."""
    data = yaml.safe_load(path.read_text("utf-8"))
    if not is_lock(data):
        return Lock({}, {})
    return Lock(data.get("inputs") or {}, data["versions"] or {})
