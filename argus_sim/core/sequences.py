"""Ways to serve a prompt by more than one image: what they cost and what they yield, for programs and prices.

A sequence is of different models. It makes an image, another one where the judge likes the first least, and
perhaps a third one where it likes the better of the two least; the best by the judge is delivered. Shares are of
the prompts of a class, so the work of a sequence is the same for all classes, and only the quality differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from argus_sim.domain import VariantId

Floats = npt.NDArray[np.float64]

#: Parts of the prompts that go on to the next image.
_SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
#: Images of a sequence at most.
_MOST = 3
#: Draws of what the judge may find (a power of two), and prices of a worker's second, in parts of the dearest,
#: at which sequences are compared.
_DRAWS = 128
_PRICES = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, 13)])
#: A sequence has to be worth so much more than any single variant, at some price.
_WORTHWHILE = 0.002


class Sequences(NamedTuple):
    """Attributes:
    variants: The variants of each sequence, in order.
    quality: float64[C, S], expected by class.
    work_s: float64[M, S], worker-seconds of each model.
    """

    variants: tuple[tuple[VariantId, ...], ...]
    quality: Floats
    work_s: Floats


def worthwhile(
    quality: Floats,
    covariance: Floats,
    work_s: Floats,
    time_s: Sequence[float],
    later: Sequence[VariantId],
    limit_s: float,
) -> Sequences:
    """The sequences that are worth more than any single variant at some price of a worker's second.

    Args:
        quality: float64[C, V], expected of each class at each variant.
        covariance: float64[V, V], of what the judge's words add to it.
        work_s: float64[M, V], worker-seconds of each model per image; of one model for each variant.
        time_s: By variant, how long one image takes.
        later: Variants that a second or third image may be made by.
        limit_s: A sequence takes no longer.
    """
    # Imported here: half a second that nobody without a judge needs to spend.
    from scipy.stats import qmc

    model = work_s.argmax(axis=0)
    draws = ndtri(qmc.Sobol(len(covariance), scramble=True, seed=0).random(_DRAWS))
    values, vectors = np.linalg.eigh(covariance)
    words = draws @ (vectors * np.sqrt(values.clip(min=0.0))).T
    found = quality[:, None, :] + words
    steps = [
        (first, *rest)
        for first in range(quality.shape[1])
        for count in range(1, _MOST)
        for rest in permutations(later, count)
        if len({*model[[first, *rest]].tolist()}) == count + 1
        and sum(time_s[v] for v in (first, *rest)) <= limit_s
    ]
    variants: list[tuple[VariantId, ...]] = []
    gains: list[Floats] = []
    work: list[Floats] = []
    for way in steps:
        for gain, spent in _shares(found, words, way, work_s):
            variants.append(way)
            gains.append(gain)
            work.append(spent)
    if not variants:
        return Sequences((), np.empty((len(quality), 0)), np.empty((len(work_s), 0)))
    everything = Sequences(tuple(variants), np.array(gains).T, np.array(work).T)
    return _thinned(everything, quality, work_s)


def _shares(
    found: Floats, words: Floats, way: tuple[VariantId, ...], work_s: Floats
) -> list[tuple[Floats, Floats]]:
    """Expected quality by class, and work by model, for each share that goes on."""
    first, second, *third = way
    rows = []
    order = words[:, first].argsort(kind="stable")
    one = found[:, :, first]
    two = np.maximum(one, found[:, :, second])
    for share in _SHARES:
        count = round(share * len(words))
        on = order[:count]
        gain = one.mean(axis=1) + (two - one)[:, on].sum(axis=1) / len(words)
        spent = work_s[:, first] + share * work_s[:, second]
        if not third:
            rows.append((gain, spent))
            continue
        best = two[:, on]
        rise = np.maximum(best, found[:, on, third[0]]) - best
        rise = np.take_along_axis(rise, best.argsort(axis=1, kind="stable"), axis=1).cumsum(axis=1) / len(words)
        for again in _SHARES:
            further = max(1, round(again * count))
            rows.append((gain + rise[:, further - 1], spent + further / len(words) * work_s[:, third[0]]))
    return rows


def _thinned(all_: Sequences, quality: Floats, work_s: Floats) -> Sequences:
    """Those that are the best that up to three models can do, on average over classes, at some price."""
    model = work_s.argmax(axis=0)
    single_s, several_s = work_s.sum(axis=0), all_.work_s.sum(axis=0)
    single, several = quality.mean(axis=0), all_.quality.mean(axis=0)
    models = range(len(work_s))
    runs_on = np.array([[m in model[list(way)] for m in models] for way in all_.variants])
    prices = float(quality.max() / single_s.min()) * _PRICES
    chosen: set[int] = set()
    for count in range(1, _MOST + 1):
        for held in combinations(models, count):
            own = np.flatnonzero(~np.delete(runs_on, held, axis=1).any(axis=1))
            alone = np.isin(model, held)
            if not len(own) or not alone.any():
                continue
            left = several[own] - prices[:, None] * several_s[own]
            best = left.argmax(axis=1)
            without = (single[alone] - prices[:, None] * single_s[alone]).max(axis=1)
            chosen.update(own[best[left[np.arange(len(prices)), best] > without + _WORTHWHILE]].tolist())
    kept = sorted(chosen)
    return Sequences(tuple(all_.variants[i] for i in kept), all_.quality[:, kept], all_.work_s[:, kept])
