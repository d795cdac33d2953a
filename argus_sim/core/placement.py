"""Which model each worker holds, and what a second of it is worth if demand is as planned."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

Floats = npt.NDArray[np.float64]


class Demand(NamedTuple):
    """What is to be served: by classes of prompts that are alike in quality.

    A way to serve is a variant, or several of them in turn.

    Attributes:
        quality: float64[C, W], expected quality of each class, served in each way.
        share: float64[C], part of the requests in each class; sums to 1.
        work_s: float64[M, W], worker-seconds of each model per request, in full batches.
        per_s: Requests/s.
    """

    quality: Floats
    share: Floats
    work_s: Floats
    per_s: float


def place(demand: Demand, now: tuple[int, ...], load_s: tuple[float, ...], horizon_s: float) -> tuple[int, ...]:
    r"""The workers per model with the highest expected quality yield, loads paid for.

    .. math::
        \max\; D \sum_{cv} h_c q_{cv} x_{cv} - \frac{p}{H} \sum_m l_m s_m
        \quad \text{s.t.} \quad \sum_v x_{cv} \le 1,\quad
        D \sum_{cv} h_c w_{mv} x_{cv} \le n_m,\quad \sum_m n_m = N,\quad s_m \ge n_m - n_m^{now}

    with integer :math:`n_m`. A load takes a worker away for :math:`l_m` seconds. Each is worth p, what a worker
    of this cluster yields per second on average, and the load has to be repaid within the horizon H.

    Args:
        demand: What is to be served.
        now: Workers that hold each model now.
        load_s: Time to load each model.
        horizon_s: How long a load has to pay for itself.
    """
    models, workers = len(now), sum(now)
    if models == 1:
        return (workers,)
    value, once, use = _program(demand, models)
    count = len(value)
    most = demand.per_s * float(demand.share @ demand.quality.max(axis=1))
    worth = min(most / workers, float((demand.share @ demand.quality / demand.work_s.sum(axis=0)).max()))
    eye, zeros = np.eye(models), np.zeros
    result = milp(
        c=-np.concatenate([value, zeros(models), -np.asarray(load_s) * worth / horizon_s]),
        constraints=[
            LinearConstraint(np.hstack([once, zeros((len(once), 2 * models))]), -np.inf, 1.0),
            LinearConstraint(np.hstack([use, -eye, zeros((models, models))]), -np.inf, 0.0),
            LinearConstraint(np.concatenate([zeros(count), np.ones(models), zeros(models)]), workers, workers),
            LinearConstraint(
                np.hstack([zeros((models, count)), eye, -eye]), -np.inf, np.asarray(now, dtype=float)
            ),
        ],
        integrality=np.concatenate([zeros(count), np.ones(models), zeros(models)]),
        bounds=Bounds(0, np.concatenate([np.ones(count), np.full(models, workers), np.full(models, np.inf)])),
        options={"mip_rel_gap": 1e-5},
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS found no placement: {result.message}")
    return tuple(round(float(n)) for n in result.x[count : count + models])


def worker_prices(demand: Demand, workers: tuple[int, ...]) -> tuple[float, ...]:
    """The dual price of a second of each model's workers; infinite where no worker holds it."""
    # Ways that need a model nobody holds are left out.
    able = ~demand.work_s[[m for m, n in enumerate(workers) if not n]].any(axis=0)
    value, once, use = _program(
        demand._replace(quality=demand.quality[:, able], work_s=demand.work_s[:, able]), len(workers)
    )
    result = linprog(
        c=-value,
        A_ub=np.vstack([once, use]),
        b_ub=np.concatenate([np.ones(len(once)), np.asarray(workers, dtype=float)]),
        bounds=(0, None),
        method="highs-ds",
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS found no prices: {result.message}")
    prices = -np.asarray(result.ineqlin.marginals[len(once) :])
    return tuple(max(0.0, float(p)) if n else float("inf") for p, n in zip(prices, workers, strict=True))


def _program(demand: Demand, models: int) -> tuple[Floats, Floats, Floats]:
    """What serving each class in each way yields, that a class is served once, and the work by model."""
    classes, variants = demand.quality.shape
    serve = demand.per_s * demand.share[:, None] * np.ones(variants)
    once = np.kron(np.eye(classes), np.ones(variants))
    use = np.array([(serve * demand.work_s[m]).ravel() for m in range(models)])
    return np.asarray((serve * demand.quality).ravel()), np.asarray(once), np.asarray(use)
