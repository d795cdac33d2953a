"""A policy has one colour and one dash pattern everywhere, told apart without colour vision too."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

#: Dash patterns by name; ``(offset, on/off lengths)`` in line widths.
_SOLID: Any = "-"
DASHED: Any = (0, (4, 1.5))
_DOTTED: Any = (0, (1, 1.2))
_DASHDOT: Any = (0, (5, 1.2, 1, 1.2))

#: Colour (after Okabe-Ito and Tol, safe for colour-blind readers) and dashes of the policies that ship.
STYLES: dict[str, tuple[str, Any]] = {
    "argus-x": ("#AA3377", _SOLID),
    "argus": ("#D55E00", _SOLID),
    "pac": ("#E69F00", DASHED),
    "proteus": ("#0072B2", _SOLID),
    "sommelier": ("#56B4E9", DASHED),
    "infaas": ("#009E73", _SOLID),
    "nirvana": ("#CC79A7", DASHED),
    "diffserve": ("#332288", _DASHDOT),
    "clipper-ha": ("#4D4D4D", _SOLID),
    "clipper-ht": ("#8C8C8C", DASHED),
    "static": ("#7A5C3E", _DOTTED),
    "hindsight": ("#000000", _DOTTED),
}

_SPARE_COLOURS = ("#117733", "#882255", "#44AA99", "#999933", "#6699CC", "#AA4499", "#661100", "#222222")
#: For policies we do not know: a name takes the solid line its hash points at, or the next free style.
_SPARE: tuple[tuple[str, Any], ...] = tuple(
    (colour, dashes) for dashes in (_SOLID, DASHED, _DASHDOT) for colour in _SPARE_COLOURS
)


def styles(policies: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """Colour and dash pattern per policy: fixed for those that ship, distinct for the others.

    >>> styles(["argus", "mine"])["argus"][0]
    '#D55E00'
    """
    given = sorted(set(policies))
    chosen = {name: STYLES[name] for name in given if name in STYLES}
    taken: set[int] = set()
    for name in given:
        if name in STYLES:
            continue
        slot = zlib.crc32(name.encode()) % len(_SPARE_COLOURS)
        while slot in taken and len(taken) < len(_SPARE):
            slot = (slot + 1) % len(_SPARE)
        taken.add(slot)
        chosen[name] = _SPARE[slot]
    return chosen
