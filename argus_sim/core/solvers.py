"""The optimisation problems of the policies, solved exactly: with HiGHS, and where all workers are alike without.

Workers that can do the same are counted, never enumerated, so the problems stay small however large the cluster.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from argus_sim.core.counting import best_counts

Floats = npt.NDArray[np.float64]
Row = tuple[float, ...]


class Allocation(NamedTuple):
    """How many workers each level gets, and the load (images/s) that it is to carry.

    Attributes:
        workers: By level.
        load_per_s: By level.
        by_kind: The same workers by kind of GPU and level; may be left empty where there is but one kind.
    """

    workers: tuple[int, ...]
    load_per_s: Row
    by_kind: tuple[tuple[int, ...], ...] = ()

    @property
    def share(self) -> Row:
        """The part of the load that each level carries; sums to 1."""
        total = sum(self.load_per_s)
        return tuple(load / total for load in self.load_per_s)


def allocate(quality: Row, throughput_per_s: Row, workers: int, demand_per_s: float) -> Allocation:
    """The workers per level that carry the demand at the highest mean quality, where all workers are alike.

    Args:
        quality: Mean quality of each level.
        throughput_per_s: Images/s of one worker at each level.
        workers: Number of workers, at least 1.
        demand_per_s: Images/s to serve, positive.
    """
    return allocate_kinds(quality, (throughput_per_s,), (workers,), demand_per_s)


@lru_cache(maxsize=4096)
def allocate_kinds(
    quality: Row, throughput_per_s: tuple[Row, ...], workers: tuple[int, ...], demand_per_s: float
) -> Allocation:
    r"""The workers per level, of each kind, that carry the demand at the highest mean quality.

    .. math:: \max \sum_{kl} q_l y_{kl} \quad \text{s.t.} \quad
        \sum_{kl} y_{kl} = D,\ y_{kl} \le \mu_{kl} n_{kl},\ \sum_l n_{kl} \le N_k

    with integer :math:`n_{kl}`: the artefact's allocation problem with counts in place of a level per worker. A
    demand beyond the capacity puts all workers on their level with the highest throughput. Among equally good
    allocations the one with the better levels on spare workers is taken.

    Args:
        quality: Mean quality of each level.
        throughput_per_s: By kind and level: images/s of one worker; 0 for a level that it cannot serve.
        workers: By kind; at least one in all.
        demand_per_s: Images/s to serve, positive.
    """
    levels, kinds = range(len(quality)), range(len(workers))
    rate = np.asarray(throughput_per_s)
    fastest = [max(levels, key=lambda i, k=k: (throughput_per_s[k][i], quality[i])) for k in kinds]  # type: ignore[misc]
    best = [max(levels, key=lambda i, k=k: (throughput_per_s[k][i] > 0.0, quality[i], -i)) for k in kinds]  # type: ignore[misc]
    capacity = sum(n * throughput_per_s[k][fastest[k]] for k, n in enumerate(workers))
    if demand_per_s >= capacity:
        loads, counts = np.zeros(rate.shape), np.zeros(rate.shape, dtype=int)
        for k in kinds:
            loads[k, fastest[k]] = workers[k] * throughput_per_s[k][fastest[k]]
            counts[k, fastest[k]] = workers[k]
        return _allocation(counts, loads)
    found = best_counts(quality, throughput_per_s[0], workers[0], demand_per_s) if len(workers) == 1 else None
    if found is None:
        counts, loads = _solved(quality, rate, workers, demand_per_s)
    else:
        counts, loads = np.array([found[0]]), np.array([found[1]])
    # The spare workers go to the best level, where they cost nothing.
    for k in kinds:
        counts[k, best[k]] += workers[k] - counts[k].sum()
    return _allocation(counts, loads)


def _solved(
    quality: Row, rate: Floats, workers: tuple[int, ...], demand_per_s: float
) -> tuple[npt.NDArray[np.int_], Floats]:
    """Workers, no more than the load needs, and load by kind and level, by HiGHS."""
    loads, counts = np.zeros(rate.shape), np.zeros(rate.shape, dtype=int)
    # Loads in units of one worker at the fastest level, so that tolerances mean the same for 8 and 1000 workers.
    unit = float(rate.max())
    load = demand_per_s / unit
    q = np.tile(np.asarray(quality), len(workers))
    ones, zeros = np.ones(rate.size), np.zeros(rate.size)
    of_kind = np.kron(np.eye(len(workers)), np.ones(len(quality)))
    result = milp(
        c=np.concatenate([zeros, -q]),
        constraints=[
            LinearConstraint(np.hstack([of_kind, np.zeros_like(of_kind)]), -np.inf, np.asarray(workers)),
            LinearConstraint(np.concatenate([zeros, ones]), load, load),
            LinearConstraint(np.hstack([-np.diag(rate.ravel() / unit), np.eye(rate.size)]), -np.inf, 0),
        ],
        integrality=np.concatenate([ones, zeros]),
        bounds=Bounds(0, np.concatenate([np.repeat(workers, len(quality)), np.full(rate.size, np.inf)])),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS found no allocation: {result.message}")
    found = result.x[rate.size :].reshape(rate.shape)
    usable = (found > 1e-6 * load) & (rate > 0.0)
    loads[usable] = found[usable] * unit
    counts[usable] = np.ceil(loads[usable] / rate[usable] - 1e-6).astype(int)
    return counts, loads


def _allocation(counts: npt.NDArray[np.int_], loads: Floats) -> Allocation:
    """From counts and loads by kind and level."""
    return Allocation(
        tuple(map(int, counts.sum(axis=0))),
        tuple(map(float, loads.sum(axis=0))),
        tuple(tuple(map(int, row)) for row in counts),
    )


@lru_cache(maxsize=65536)
def align(have: Row, want: Row, loss: tuple[Row, ...]) -> Floats:
    r"""Which level prompts of each affinity are to be served at: the transport problem, solved exactly.

    .. math:: \min \sum_{ij} c_{ij} x_{ij} \quad \text{s.t.} \quad \sum_j x_{ij} = h_i,\ \sum_i x_{ij} = f_j

    Args:
        have: Share of prompts with each affinity (h), L numbers; positive, sum to 1.
        want: Share of the load that each level carries (f), L numbers; sum to 1.
        loss: L x L, quality lost when a prompt of affinity i is served at level j.

    Returns:
        float64[L, L], read-only: probability that a prompt of affinity i is served at level j; rows sum to 1. The
        same arguments give the same array.
    """
    used = [j for j, load in enumerate(want) if load > 0.0]
    flow = _flow_to_two(have, want, loss, used[0], used[-1]) if len(used) <= 2 else _flow(have, want, loss)
    shares = flow / np.asarray(have)[:, None]
    shares[shares < 1e-9] = 0.0
    shares /= shares.sum(axis=1, keepdims=True)
    shares.setflags(write=False)
    return np.asarray(shares)


def _flow_to_two(have: Row, want: Row, loss: tuple[Row, ...], first: int, last: int) -> Floats:
    """The flow where no more than two levels carry load: those who lose least by it go to the first one.

    Allocations rarely mix more levels than two, and HiGHS takes a hundred times as long.
    """
    flow = np.zeros((len(have), len(want)))
    left = want[first]
    # Of equals, the most approximate affinity goes first.
    for i in sorted(range(len(have)), key=lambda i: (loss[i][first] - loss[i][last], -i)):
        flow[i, last] = have[i]
        if first != last:
            flow[i, first] = moved = min(have[i], left)
            flow[i, last] -= moved
            left -= moved
    return flow


def _flow(have: Row, want: Row, loss: tuple[Row, ...]) -> Floats:
    """The flow of :func:`align`, by HiGHS."""
    levels = len(have)
    rows = np.kron(np.eye(levels), np.ones(levels))
    columns = np.kron(np.ones(levels), np.eye(levels))
    result = linprog(
        c=np.asarray(loss).ravel(),
        A_eq=np.vstack([rows, columns]),
        b_eq=np.concatenate([have, want]),
        bounds=(0, None),
        method="highs-ds",
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS found no alignment: {result.message}")
    return np.maximum(result.x.reshape(levels, levels), 0.0)


def align_one_pass(have: Row, want: Row) -> Floats:
    """The artefact's "distribution aligner": one pass from the most approximate level down, with its flaws.

    Surplus moves one level towards less approximation, deficits pull from the nearest levels below. When
    surplus cascades over several levels, the probabilities are those of single hops, and the levels get other
    shares than planned; comparisons are made at two decimals. Kept for comparison with :func:`align`. Where the
    artefact would divide by zero (no prompt of an affinity), the row stays as it is.

    Args, returns: As :func:`align`.
    """
    levels = len(have)
    shares, left, original = np.eye(levels), np.array(have), np.array(have)
    for k in range(levels - 1, 0, -1):
        if left[k] > want[k]:
            move = (left[k] - want[k]) / left[k]
            taken = shares[k, k + 1 :].sum()
            shares[k, k - 1] = move * (1.0 - taken)
            shares[k, k] = (1.0 - move) * (1.0 - taken)
            left[k - 1] += left[k] - want[k]
            left[k] = want[k]
        below = k - 1
        while round(left[k], 2) < round(want[k], 2) and below >= 0:
            shift = min(left[below], want[k] - left[k])
            if original[below] > 0:
                shares[below, k] = shift / original[below]
                left[below] -= shift
                left[k] += shift
                shares[below, below] = left[below] / original[below]
            below -= 1
    shares = np.clip(shares, 0.0, None)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))
