"""Where a number comes from. Every shipped table and trace carries this, and every report shows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["measured", "recorded", "published", "synthetic"]

#: From what can be trusted most to what can be trusted least; a mix is as good as its worst part.
KINDS: tuple[Kind, ...] = ("measured", "recorded", "published", "synthetic")


class Provenance(BaseModel):
    """The origin of a table, of some of its rows, or of a trace.

    Attributes:
        kind: ``measured`` by this project's harness; ``recorded`` in a public data set of real runs or human
            ratings; ``published`` in a paper, artefact or documentation page; ``synthetic`` by a generator.
        source: Citation, address, or generator and its seed.
        covers: Which rows it speaks for, as a glob over variants, models or columns (``"sdxl/ac-*"``); ``"*"``
            is all of the table.
        derived: How the number was computed from the source, when it is not in it as such.
        licence: Licence of the source, where it matters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    source: str = Field(min_length=1)
    covers: str = "*"
    derived: str | None = None
    licence: str | None = None


def worst(parts: Iterable[Provenance]) -> Kind:
    """The least trustworthy kind among the parts: what the whole may be called."""
    kinds = [KINDS.index(part.kind) for part in parts]
    if not kinds:
        raise ValueError("no provenance given")
    return KINDS[max(kinds)]
