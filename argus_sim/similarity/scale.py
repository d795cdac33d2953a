"""From the cosine of one embedding to the similarity that thresholds are written for.

Thresholds (0.65 for 5 of 50 steps, ...) belong to the similarity of CLIP text vectors; cosines of another
embedding mean something else. A scale says what is known of the one given the other: not a number but a
distribution, since two embeddings agree in tendency only. Each text has a quantile u in [0, 1) of its own,
always the same one, and

.. math:: s = Q(u \\mid c)

where Q rises in both. The scales that come with the project were fitted to a recorded log (``provenance``):
to the nearest of a thousand prompts and more, which is seldom far away. Below the lowest cosine that was fitted
nothing is known but the end, that texts which have nothing in common are not similar; so there similarities
fall in proportion, to 0 at a cosine of 0:

.. math:: s = Q(u \\mid c_0)\\,\\frac{\\max(c, 0)}{c_0}, \\qquad c < c_0
"""

from __future__ import annotations

import importlib.resources
import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from argus_sim.errors import InputError, did_you_mean
from argus_sim.provenance import Provenance

Floats = npt.NDArray[np.float64]

#: A cosine from which on two texts are the same to the embedding: nothing to be uncertain about.
SAME = 0.9995


class SimilarityScale(BaseModel):
    """A table of quantiles.

    Attributes:
        embedding: Whose cosines.
        target: Whose similarities.
        cosine: Ascending, above 0.
        probability: Ascending from 0 to 1.
        similarity: By cosine, then by probability; rising in both.
        provenance: What it was fitted to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: str
    target: str
    cosine: tuple[float, ...] = Field(min_length=2)
    probability: tuple[float, ...] = Field(min_length=2)
    similarity: tuple[tuple[float, ...], ...]
    provenance: tuple[Provenance, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if len(self.similarity) != len(self.cosine):
            raise ValueError(f"{len(self.similarity)} rows of similarity for {len(self.cosine)} cosines")
        if any(len(row) != len(self.probability) for row in self.similarity):
            raise ValueError("each row of similarity needs a value for each probability")
        if self.cosine[0] <= 0.0:
            raise ValueError(f"the lowest cosine must be above 0, found {self.cosine[0]}")
        columns: list[Sequence[float]] = list(zip(*self.similarity, strict=True))
        for values in (self.cosine, self.probability, *self.similarity, *columns):
            if list(values) != sorted(values):
                raise ValueError("cosine, probability, and similarity by row and by column must rise")
        return self

    def similarity_of(self, cosine: float, u: float) -> float:
        """The similarity of two texts of this cosine, for a text of quantile ``u``; linear between knots."""
        if cosine >= SAME:
            return 1.0
        row, across = _between(self.cosine, cosine)
        column, along = _between(self.probability, u)
        low, high = self.similarity[row], self.similarity[row + 1]
        a = low[column] + along * (low[column + 1] - low[column])
        b = high[column] + along * (high[column + 1] - high[column])
        return (a + across * (b - a)) * min(max(cosine, 0.0) / self.cosine[0], 1.0)

    def similarities_of(self, cosine: Floats, u: Floats) -> Floats:
        """float64[n]: the same for many texts at once."""
        row, across = _all_between(np.array(self.cosine), cosine)
        column, along = _all_between(np.array(self.probability), u)
        table = np.array(self.similarity)
        low = table[row, column] + along * (table[row, column + 1] - table[row, column])
        high = table[row + 1, column] + along * (table[row + 1, column + 1] - table[row + 1, column])
        known = np.clip(cosine / self.cosine[0], 0.0, 1.0)
        return np.where(cosine >= SAME, 1.0, (low + across * (high - low)) * known)

    @classmethod
    def of(cls, embedding: str, *, where: str) -> SimilarityScale:
        """The scale of an embedding that comes with the project; :class:`InputError` where there is none."""
        folder = importlib.resources.files("argus_sim.similarity").joinpath("scales")
        known = sorted(
            item.name.removesuffix(".json") for item in folder.iterdir() if item.name.endswith(".json")
        )
        if embedding not in known:
            raise InputError(
                f"no scale of similarity is known for the embedding {embedding!r}"
                f"{did_you_mean(embedding, known)} Or use its cosines as they are (scale: cosine).",
                where=where,
            )
        return cls.model_validate(json.loads(folder.joinpath(f"{embedding}.json").read_text("utf-8")))


def _between(knots: Sequence[float], value: float) -> tuple[int, float]:
    """The interval of knots that a value is in, and how far it is along; the ends hold beyond them."""
    at = min(max(bisect_right(knots, value) - 1, 0), len(knots) - 2)
    width = knots[at + 1] - knots[at]
    return at, min(max((value - knots[at]) / width, 0.0), 1.0) if width else 0.0


def _all_between(knots: Floats, values: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    at = np.clip(np.searchsorted(knots, values, side="right") - 1, 0, len(knots) - 2).astype(np.int64)
    width = knots[at + 1] - knots[at]
    along = np.divide(values - knots[at], width, out=np.zeros(len(values)), where=width > 0)
    return at, np.clip(along, 0.0, 1.0)
