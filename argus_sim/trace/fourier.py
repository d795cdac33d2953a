"""A rate that repeats: a Fourier series in its logarithm, which no rate below 0 comes out of.

.. math:: \\log r(t) = \\log r_0 + \\sum_{k=1}^K a_k \\cos(2 \\pi k t / T) + b_k \\sin(2 \\pi k t / T)

It is fitted to counts per minute by Poisson regression (maximum likelihood, Newton's method; McCullagh and
Nelder, Generalized Linear Models, 1989).
"""

from __future__ import annotations

import math

import numpy as np

from argus_sim.errors import InputError
from argus_sim.trace.trace import Floats

Harmonic = tuple[float, float, float]


def series(per_minute: Floats, harmonics: int, period_s: float) -> tuple[float, tuple[Harmonic, ...]]:
    """Level (per minute) and ``(period_s / k, a_k, b_k)`` of each harmonic.

    Args:
        per_minute: float64[minutes], counts, not all 0.
        harmonics: How many, each of at least two minutes.
        period_s: From 600 to the length of the counts.

    Raises:
        InputError: ``harmonics`` or ``period_s`` is out of these bounds.
    """
    if harmonics < 1:
        raise InputError(f"harmonics must be at least 1, found {harmonics}")
    if not 600 <= period_s <= 60 * len(per_minute):
        raise InputError(f"period_s must be from 600 to the trace's {60 * len(per_minute)} s, found {period_s:g}")
    if 120 * harmonics > period_s:
        raise InputError(f"{harmonics} harmonics of {period_s:g} s are shorter than two minutes")
    middle_s = (np.arange(len(per_minute)) + 0.5) * 60.0
    angle = 2.0 * np.pi * np.arange(1, harmonics + 1) * middle_s[:, None] / period_s
    x = np.hstack([np.ones((len(per_minute), 1)), np.cos(angle), np.sin(angle)])
    weight = np.zeros(x.shape[1])
    weight[0] = math.log(float(np.mean(per_minute)))
    for _ in range(200):
        rate = np.exp(np.clip(x @ weight, -50.0, 50.0))
        # A long silence wants a rate of 0, that is a series without bounds: a small penalty holds it.
        penalty = np.full(len(weight), 1e-3)
        penalty[0] = 0.0
        slope = x.T @ (per_minute - rate) - penalty * weight
        step = np.linalg.solve((x * rate[:, None]).T @ x + np.diag(penalty), slope)
        largest = float(np.max(np.abs(step)))
        weight = weight + step * min(1.0, 1.0 / max(largest, 1e-12))
        if largest < 1e-9:
            break
    a, b = weight[1 : harmonics + 1].tolist(), weight[harmonics + 1 :].tolist()
    waves = tuple((period_s / (k + 1), float(f"{a[k]:.4g}"), float(f"{b[k]:.4g}")) for k in range(harmonics))
    return float(f"{math.exp(weight[0]):.5g}"), waves
