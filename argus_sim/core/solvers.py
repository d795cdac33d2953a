"""The optimisation problems of the policies, solved exactly with HiGHS.

Workers that can do the same are counted, never enumerated, so the problems stay small however large the cluster.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

Floats = npt.NDArray[np.float64]
Row = tuple[float, ...]


class Allocation(NamedTuple):
    """How many workers each level gets, and the load (images/s) that it is to carry."""

    workers: tuple[int, ...]
    load_per_s: Row

    @property
    def share(self) -> Row:
        """The part of the load that each level carries; sums to 1."""
        total = sum(self.load_per_s)
        return tuple(load / total for load in self.load_per_s)


@lru_cache(maxsize=4096)
def allocate(quality: Row, throughput_per_s: Row, workers: int, demand_per_s: float) -> Allocation:
    r"""The workers per level that carry the demand at the highest mean quality.

    .. math:: \max \sum_l q_l y_l \quad \text{s.t.} \quad \sum_l y_l = D,\ y_l \le \mu_l n_l,\ \sum_l n_l = N

    with integer :math:`n_l`: the artefact's allocation problem with counts in place of a level per worker. A
    demand beyond the capacity puts all workers on the level with the highest throughput. Among equally good
    allocations the one with the better levels on spare workers is taken.

    Args:
        quality: Mean quality of each level.
        throughput_per_s: Images/s of one worker at each level.
        workers: Number of workers, at least 1.
        demand_per_s: Images/s to serve, positive.
    """
    levels = len(quality)
    fastest = max(range(levels), key=lambda i: (throughput_per_s[i], quality[i]))
    capacity = workers * throughput_per_s[fastest]
    if demand_per_s >= capacity:
        counts = tuple(workers if i == fastest else 0 for i in range(levels))
        return Allocation(counts, tuple(capacity if i == fastest else 0.0 for i in range(levels)))
    # Loads in units of one worker at the fastest level, so that tolerances mean the same for 8 and 1000 workers.
    unit = throughput_per_s[fastest]
    load = demand_per_s / unit
    q = np.asarray(quality)
    ones, zeros = np.ones(levels), np.zeros(levels)
    result = milp(
        c=np.concatenate([zeros, -q]),
        constraints=[
            LinearConstraint(np.concatenate([ones, zeros]), -np.inf, workers),
            LinearConstraint(np.concatenate([zeros, ones]), load, load),
            LinearConstraint(
                np.hstack([-np.diag(np.asarray(throughput_per_s) / unit), np.eye(levels)]), -np.inf, 0
            ),
        ],
        integrality=np.concatenate([ones, zeros]),
        bounds=Bounds(0, np.concatenate([np.full(levels, workers), np.full(levels, np.inf)])),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS found no allocation: {result.message}")
    loads = np.where(result.x[levels:] > 1e-6 * load, result.x[levels:] * unit, 0.0)
    # No more workers than the load needs; the spare ones go to the best level, where they cost nothing.
    counts = np.ceil(loads / np.asarray(throughput_per_s) - 1e-6).astype(int)
    counts[int(np.argmax(q))] += workers - counts.sum()
    return Allocation(tuple(map(int, counts)), tuple(map(float, loads)))


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
    flow = np.maximum(result.x.reshape(levels, levels), 0.0)
    shares = flow / np.asarray(have)[:, None]
    shares[shares < 1e-9] = 0.0
    shares /= shares.sum(axis=1, keepdims=True)
    shares.setflags(write=False)
    return np.asarray(shares)


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
