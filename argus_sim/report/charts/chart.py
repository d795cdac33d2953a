"""A chart as the template draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from argus_sim.report.charts.svg import Tick
from argus_sim.report.moving import Floats


@dataclass
class Path:
    """One path of a chart; ``policy`` is the number of the policy that a switch hides it with."""

    d: str
    kind: str
    policy: int | None = None
    colour: str = ""
    dashes: str = ""
    opacity: float = 1.0


@dataclass
class Dot:
    """One point with its name; positions are percentages of the box.

    Attributes:
        label_x, label_y: The edge of its name that is next to it.
        left: Its name is on its left.
    """

    x: str
    y: str
    label_x: str
    label_y: str
    name: str
    text: str
    policy: int | None = None
    left: bool = False


@dataclass
class Chart:
    """A chart as the template draws it.

    Attributes:
        label: What a screen reader says of it.
        live, zooms: Whether pointer and keyboard read it, and whether they zoom it.
        open: What reaches over its edge is shown.
        names: What stands below are names, which take more room than numbers.
    """

    id: str
    title: str
    note: str
    label: str
    x: list[Tick]
    y: list[Tick]
    x_label: str
    paths: list[Path] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    height: int = 220
    live: bool = True
    zooms: bool = True
    open: bool = False
    names: bool = False
    rule: tuple[str, str] | None = None


def dashes(pattern: Any) -> str:
    """A Matplotlib dash pattern as ``stroke-dasharray``, in pixels."""
    return "" if isinstance(pattern, str) else " ".join(f"{2 * length:g}" for length in pattern[1])


def rounded(values: Sequence[float] | Floats) -> list[float | None]:
    """Values for the script: four digits, undefined as null."""
    return [None if math.isnan(v) else float(f"{v:.4g}") for v in np.asarray(values, dtype=np.float64).tolist()]
