r"""What a second of a worker is worth, by how much work waits: the prices behind the policy ``argus-x``.

A pool of N workers has a backlog, here the wait x that a new request faces. More work for one request means more
quality and a longer wait for all after it, and near the deadline somebody is lost for it. With V(x) the quality
still to come, a second of a worker is worth :math:`\lambda(x) = -V'(x) / N`, and a request is best served as

.. math:: \arg\max_v\ q_v - \lambda(x)\, w_v .

V is found from a Markov chain on a grid of waits, a birth and death process that approximates the controlled
diffusion of the wait (Kushner and Dupuis, *Numerical Methods for Stochastic Control Problems in Continuous Time*,
2001, chapter 5): its drift is work asked for less work done, its variance that of the arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: At most so many prices are told apart; policy iteration rarely needs more than five rounds.
_PRICES = 64
_ROUNDS = 30


@dataclass(frozen=True)
class Pool:
    """The workers that hold one model, and what may be asked of them: V ways to serve a prompt.

    Attributes:
        quality: float64[C, V], what a prompt of each class is expected to be worth as each variant.
        work_s: float64[V], worker-seconds per image in a full batch.
        chance: float64[V], the part of the prompts that bring this work at all: 1, but for a later image.
        latest_s: float64[V], the longest wait after which each variant still makes the deadline.
        share: float64[C], part of the demand in each class; sums to 1.
        otherwise: float64[C], what a prompt of each class is worth if this pool does not serve it.
        workers: How many there are.
        full_wait_s: From this wait on batches are full.
        half_full: The part of its full throughput that a worker has without any wait, in batches of one.
    """

    quality: Floats
    work_s: Floats
    chance: Floats
    latest_s: Floats
    share: Floats
    otherwise: Floats
    workers: int
    full_wait_s: float
    half_full: float


def classes(predicted: Floats, train: Ints, count: int) -> tuple[Ints, Floats]:
    """Group prompts that are alike in quality: halve the widest group at its median until there are ``count``.

    Args:
        predicted: float64[P, V], expected quality of each prompt at each variant.
        train: int64[T], the prompts that decide where groups are cut.
        count: How many groups at most.

    Returns:
        int64[P], the group of each prompt, and float64[C, V], what is expected of each group on average.
    """
    groups = [(train, np.arange(len(predicted)))]
    final: list[tuple[Ints, Ints]] = []
    while groups and len(groups) + len(final) < count:
        spreads = [float(predicted[known].var(axis=0).max()) * len(known) for known, _ in groups]
        known, members = groups.pop(int(np.argmax(spreads)))
        column = int(predicted[known].var(axis=0).argmax())
        cut = float(np.median(predicted[known, column]))
        low, high = known[predicted[known, column] <= cut], known[predicted[known, column] > cut]
        if not len(low) or not len(high):
            final.append((known, members))
            continue
        below = predicted[members, column] <= cut
        groups += [(low, members[below]), (high, members[~below])]
    found = groups + final
    group = np.empty(len(predicted), dtype=np.int64)
    for index, (_, members) in enumerate(found):
        group[members] = index
    return group, np.array([predicted[known].mean(axis=0) for known, _ in found])


def backlog_prices(
    pool: Pool, demand_per_s: float, dispersion: float, waits_s: Sequence[float], horizon_s: float
) -> list[float]:
    """The price of a worker's second at each wait.

    Args:
        pool: Whose seconds.
        demand_per_s: Requests/s that come to all pools together.
        dispersion: Variance of the number of arrivals over its mean: 1 for a Poisson process.
        waits_s: An even grid from 0 to the longest wait that makes sense.
        horizon_s: How far ahead quality counts; it is discounted at 1 / ``horizon_s``.

    Returns:
        One price (quality per worker-second) for each wait; they do not fall.
    """
    waits = np.asarray(waits_s, dtype=np.float64)
    step = float(waits[1] - waits[0])
    cells, n = len(waits), pool.workers
    gain, work, square, price = _responses(pool, waits)
    full = np.minimum(1.0, pool.half_full + (1.0 - pool.half_full) * waits / max(pool.full_wait_s, 1e-9))
    # From the middle of one cell to that of the next; rates of going up and down by one cell (upwind).
    drift = demand_per_s * work / n - full[:, None]
    noise = 0.5 * dispersion * demand_per_s * square / n**2 / step**2
    up = noise + np.maximum(drift, 0.0) / step
    down = noise + np.maximum(-drift, 0.0) / step
    down[0] = 0.0
    # Work that comes on top of the last cell is lost, with what it would have been worth.
    density = np.divide(gain, work, out=np.zeros_like(gain), where=work > 0.0)
    reward = demand_per_s * gain
    reward[-1] -= up[-1] * step * n * density[-1]
    up[-1] = 0.0
    cell = np.arange(cells)
    choice = np.full(cells, len(price) // 2)
    for _ in range(_ROUNDS):
        value = _solve(reward[cell, choice], up[cell, choice], down[cell, choice], 1.0 / horizon_s)
        rise = np.diff(value)
        worth = reward + up * np.append(rise, 0.0)[:, None] - down * np.append(0.0, rise)[:, None]
        better = worth.argmax(axis=1)
        # Only what is better by more than rounding may change, or rounds would never end.
        better = np.where(worth[cell, better] > worth[cell, choice] * (1.0 + 1e-9) + 1e-12, better, choice)
        if (better == choice).all():
            break
        choice = better
    slope = -rise / (step * n)
    prices = np.append(slope[0], np.append(0.5 * (slope[1:] + slope[:-1]), slope[-1]))
    found: list[float] = np.maximum.accumulate(np.maximum(prices, 0.0)).tolist()
    return found


def _responses(pool: Pool, waits: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """What demand answers to each price, at each wait, per request: float64[G, L] and the prices, float64[L].

    Returns:
        Quality gained over going elsewhere, work asked for, its mean square, and the prices.
    """
    price = _breakpoints(pool)
    left = pool.quality[None] - price[:, None, None] * pool.work_s
    shape = (len(waits), len(price))
    gain, work, square = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    in_time = waits[:, None] <= pool.latest_s
    rows = np.arange(len(pool.share))
    for start in np.flatnonzero(np.append(True, (in_time[1:] != in_time[:-1]).any(axis=1))):
        same = (in_time == in_time[start]).all(axis=1)
        if not in_time[start].any():
            continue
        allowed = np.where(in_time[start], left, -np.inf)
        best = allowed.argmax(axis=2)
        taken = pool.share * (np.take_along_axis(allowed, best[..., None], 2)[..., 0] > pool.otherwise)
        gain[same] = (taken * (pool.quality[rows, best] - pool.otherwise)).sum(axis=1)
        work[same] = (taken * pool.work_s[best]).sum(axis=1)
        square[same] = (taken * pool.work_s[best] ** 2 / pool.chance[best]).sum(axis=1)
    return gain, work, square, price


def _breakpoints(pool: Pool) -> Floats:
    """Prices at which some class changes its mind, thinned out; 0 and one that nobody pays included."""
    worth = np.hstack([pool.quality - pool.otherwise[:, None], pool.quality])
    density = (worth / np.tile(pool.work_s, 2)).ravel()
    steps = pool.quality[:, :, None] - pool.quality[:, None, :]
    apart = pool.work_s[:, None] - pool.work_s[None, :]
    slopes = (steps / np.where(apart > 0.0, apart, np.inf)).ravel()
    found = np.unique(np.concatenate([density, slopes]))
    found = found[found > 0.0]
    if len(found) > _PRICES:
        found = np.unique(np.quantile(found, np.linspace(0.0, 1.0, _PRICES)))
    if not len(found):
        return np.array([0.0])
    return np.concatenate([[0.0], 0.5 * (found[1:] + found[:-1]), [2.0 * found[-1]]])


def _solve(reward: Floats, up: Floats, down: Floats, rate: float) -> Floats:
    """Values of a birth and death process with rewards, discounted: a tridiagonal system, by elimination."""
    count = len(reward)
    r, u, d = reward.tolist(), up.tolist(), down.tolist()
    factor, rest = [0.0] * count, [0.0] * count
    for i in range(count):
        pivot = rate + u[i] + d[i] - (d[i] * factor[i - 1] if i else 0.0)
        factor[i] = u[i] / pivot
        rest[i] = (r[i] + (d[i] * rest[i - 1] if i else 0.0)) / pivot
    value = [0.0] * count
    value[-1] = rest[-1]
    for i in range(count - 2, -1, -1):
        value[i] = rest[i] + factor[i] * value[i + 1]
    return np.array(value)


def longest_wait_s(slo_s: float, batch_s: float, workers: int, service_s: float) -> float:
    """After which wait a batch that takes ``batch_s`` (by its 99th percentile) still makes the deadline.

    The wait is that until work in the queue is done; the worker that gets free next takes another while, on
    average a service time over one more than there are workers.
    """
    return max(0.0, slo_s - batch_s - service_s / (workers + 1)) if math.isfinite(batch_s) else 0.0
