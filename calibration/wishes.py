"""What the command line asks for, and what a run that goes on has from where it began."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from argus_sim.errors import InputError
from calibration.assemble import ABSENT
from calibration.zoo import ZOOS

DEFAULT_ZOO: Final = "sd"


@dataclass(frozen=True)
class Wishes:
    """The command line's options; None and () are "choose for me"."""

    zoo: str | None = None
    models: tuple[str, ...] = ()
    weights: Path | None = None
    gpu: int | None = None
    device: str | None = None
    threads: int | None = None
    dtype: str | None = None
    prompts: str | None = None
    approximations: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    steps: int | None = None
    seeds: int | None = None
    scorers: tuple[str, ...] = ()
    metric: str | None = None
    embedding: str | None = None
    out: Path | None = None
    resume: bool = False
    latency_only: bool = False
    quality_only: bool = False
    random_weights: bool = False
    budget_s: float | None = None
    cell_seconds: float | None = None
    idle_seconds: float | None = None
    rounds: int | None = None
    sheets: int = 0


_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(text: str) -> float:
    """A length of time such as ``90s``, ``30m`` or ``1h30m``.

    >>> seconds_of("1h30m")
    5400.0
    """
    if not re.fullmatch(r"(\d+(\.\d+)?[smh])+", text):
        raise InputError(f"no length of time: {text!r}; write 90s, 30m or 1h30m", where="--budget")
    return sum(float(number) * _UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smh])", text))


#: Options that stand in a run's plan under their own name.
_IN_THE_PLAN: Final = (
    "zoo", "dtype", "prompts", "approximations", "batch_sizes", "steps", "seeds", "embedding", "cell_seconds",
    "idle_seconds", "rounds",
)  # fmt: skip


def as_begun(wishes: Wishes, begun: Mapping[str, Any]) -> Wishes:
    """The wishes with what is not given taken from the plan of the run that goes on.

    What is given and differs is for the store to refuse. Models and scorers are not filled in: those of a run
    that goes on need not be had any more where their part is done.

    Raises:
        InputError: The zoo is another one, in which the run's models are not known.
    """
    if not begun:
        return wishes
    if wishes.zoo not in (None, begun["zoo"]):
        raise InputError(f"the run that goes on is of {begun['zoo']!r}, not {wishes.zoo!r}", where="--zoo")
    more: dict[str, Any] = {
        name: tuple(value) if isinstance(value := begun.get(name), list) else value
        for name in _IN_THE_PLAN
        if getattr(wishes, name) in (None, ())
    }
    if wishes.metric is None and begun["metric"] != ABSENT:
        more["metric"] = begun["metric"]
    if wishes.device is None and wishes.gpu is None:
        more["device"] = begun["device"]
    if not (wishes.latency_only or wishes.quality_only or wishes.random_weights):
        more["random_weights"] = begun["random_weights"]
        more["quality_only"] = not begun["latency"]
        more["latency_only"] = not begun["quality"]
    return replace(wishes, **more)


def models_of(begun: Mapping[str, Any], weights: Path | None) -> tuple[str, ...]:
    """The models of the run that goes on, as ``--models`` names them, with the folders that they were read from.

    Args:
        begun: Its plan.
        weights: A folder with a folder of weights per model, given now: the zoo's models are looked for there.
    """
    folders = begun.get("folders", {})
    known = {entry.name for entry in ZOOS[begun["zoo"]]} if begun and weights is not None else set()
    return tuple(
        f"{name}={folders[name]}" if name in folders and name not in known else name
        for name in begun.get("models", ())
    )
