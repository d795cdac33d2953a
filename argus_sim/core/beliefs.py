r"""What a judge's word on an image tells: of that image, and of others that could be made for the same prompt.

A judge (a discriminator, a reward model) has looked at images of the training prompts, whose quality is known.
For each variant the quality in excess of what was predicted from the text is fitted by a parabola in the normal
score of the judge's confidence, as far as that rises:

.. math:: u_v = a_v + b_v g_v + c_v g_v^2

That is what a word is worth. Given the words on some images S of a prompt, the quality of any variant w is
expected to exceed the prediction by the linear regression of that excess on the worths :math:`u_S`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from argus_sim.domain import VariantId

Floats = npt.NDArray[np.float64]

_NORMAL = NormalDist()
_ROOT = math.sqrt(0.5)
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)
#: The table of :func:`expected_rise` that is read backwards, for z up to this on both sides.
_FARTHEST, _STEPS = 6.0, 1200
#: Of the variance of worths; keeps a regression on hardly any training prompts from running wild.
_RIDGE = 1e-3
#: What chi-squared with two degrees of freedom exceeds in one case of a hundred: a judge that explains no more of
#: the quality of the training images than chance does is taken for one that guesses.
_SIGNIFICANT = 9.21
#: How many first images an expectation is taken over.
_NODES = 32


class After(NamedTuple):
    """What is believed after images of some variants.

    Attributes:
        weight: For each variant, how much each word's worth adds to what was predicted of it.
        spread: For each variant, the standard deviation of what its own word would still add.
    """

    weight: tuple[tuple[float, ...], ...]
    spread: tuple[float, ...]


class Beliefs:
    """Learned from the training prompts.

    Args:
        observed: float64[T, V], the true relative quality.
        predicted: float64[T, V], what the text says, out of fold.
        judged: float64[T, V], the judge's confidence in an image each, in (0, 1).

    Attributes:
        worth: float64[T, V], of the words on the training images.
    """

    def __init__(self, observed: Floats, predicted: Floats, judged: Floats) -> None:
        score = ndtri(judged)
        self._excess = observed - predicted
        self.worth = np.zeros_like(score)
        #: By variant: centre and slope of the score over the prediction, the parabola, and where it rises.
        self._fits: list[tuple[float, float, float, float, float, float, float]] = []
        for v in range(score.shape[1]):
            middle, spread = predicted[:, v].mean(), predicted[:, v].var()
            slope = float(((predicted[:, v] - middle) * score[:, v]).mean() / spread) if spread > 1e-9 else 0.0
            # A judge does not think less of what promises more; out-of-fold predictions of noise look like that.
            slope = max(0.0, slope)
            centre = float(score[:, v].mean() - slope * middle)
            rest = score[:, v] - centre - slope * predicted[:, v]
            c, b, a = np.polyfit(rest, self._excess[:, v], 2) if rest.std() > 1e-9 else (0.0, 0.0, 0.0)
            fitted = float(np.polyval((c, b, a), rest).var())
            chance = float((self._excess[:, v] - np.polyval((c, b, a), rest)).var()) / len(rest)
            if b <= 0.0 or fitted < _SIGNIFICANT * chance:
                a = b = c = 0.0
            vertex = -b / (2.0 * c) if c else math.inf
            low, high = (vertex, math.inf) if c > 0.0 else (-math.inf, vertex)
            self._fits.append((centre, slope, float(a), float(b), float(c), float(low), float(high)))
            rest = rest.clip(low, high)
            self.worth[:, v] = a + b * rest + c * rest**2
        self._known: dict[tuple[VariantId, ...], After] = {}

    def word(self, variant: VariantId, confidence: float, predicted: float) -> float:
        """What the judge's word on an image is worth: by how much it exceeds what the text had promised."""
        centre, slope, a, b, c, low, high = self._fits[variant]
        rest = _NORMAL.inv_cdf(min(max(confidence, 1e-12), 1.0 - 1e-12)) - centre - slope * predicted
        rest = min(max(rest, low), high)
        return a + (b + c * rest) * rest

    @cached_property
    def covariance(self) -> Floats:
        """float64[V, V], of the worths."""
        return np.atleast_2d(np.cov(self.worth, rowvar=False))

    def after(self, made: tuple[VariantId, ...]) -> After:
        """What to believe after images of these variants (each once)."""
        known = self._known.get(made)
        if known is None:
            known = self._known[made] = self._after(made)
        return known

    def _after(self, made: tuple[VariantId, ...]) -> After:
        variance = self.covariance.diagonal()
        if not made:
            return After(tuple(() for _ in variance), tuple(np.sqrt(variance).tolist()))
        rows = list(made)
        seen = self.worth[:, rows] - self.worth[:, rows].mean(axis=0)
        among = seen.T @ seen / len(seen)
        among += np.diag(_RIDGE * among.diagonal() + 1e-12)
        excess = self._excess - self._excess.mean(axis=0)
        weight = np.linalg.solve(among, seen.T @ excess / len(seen)).T
        words = self.worth - self.worth.mean(axis=0)
        left = words - seen @ np.linalg.solve(among, seen.T @ words / len(seen))
        spread = np.sqrt(left.var(axis=0))
        return After(tuple(map(tuple, weight.tolist())), tuple(spread.tolist()))


def expected_rise(z: float) -> float:
    """E[max(0, z + N)] for a standard normal N."""
    return z * 0.5 * math.erfc(-z * _ROOT) + _DENSITY * math.exp(-0.5 * z * z)


_GRID: list[float] = np.linspace(-_FARTHEST, _FARTHEST, _STEPS + 1).tolist()
_RISES = [expected_rise(z) for z in _GRID]


def reservation(mean: float, spread: float, cost: float) -> float:
    r"""The best quality at hand from which on another image is not worth its cost (Weitzman, Econometrica 1979).

    The r with :math:`E[(X - r)^+] = cost` for the quality X that the judge will find, a normal variable. Without
    spread (no judge) it is ``mean - cost``.
    """
    if spread <= 1e-9:
        return mean - cost
    rise = cost / spread
    if rise >= _RISES[-1]:
        return mean - cost
    above = bisect_left(_RISES, rise)
    if not above:
        return mean + spread * _FARTHEST
    low, high = _RISES[above - 1], _RISES[above]
    z = _GRID[above - 1] + (_GRID[above] - _GRID[above - 1]) * (rise - low) / (high - low)
    return mean - spread * z


def posterior(beliefs: After, predicted: Sequence[float], words: Sequence[float], variant: VariantId) -> float:
    """The expected quality of a variant, given what the words on the images so far are worth."""
    return predicted[variant] + math.fsum(w * u for w, u in zip(beliefs.weight[variant], words, strict=True))


def second_gains(beliefs: Beliefs, quality: Floats, first: VariantId, second: VariantId, costs: Floats) -> Floats:
    """float64[L, C]: what the chance of a second image is expected to add to the first, by its cost and by class.

    Args:
        beliefs: What the judge's words tell.
        quality: float64[C, V], expected of each class at each variant.
        first, second: What makes the images.
        costs: float64[L], of the second image.
    """
    after = beliefs.after((first,))
    spread = max(after.spread[second], 1e-9)
    words = beliefs.after(()).spread[first] * ndtri((np.arange(_NODES) + 0.5) / _NODES)
    z = quality[:, second, None] - quality[:, first, None] + (after.weight[second][0] - 1.0) * words
    z = z / spread
    rise = spread * (z * ndtr(z) + _DENSITY * np.exp(-0.5 * z * z))
    return np.asarray((rise - costs[:, None, None]).clip(min=0.0).mean(axis=2))
