"""What is forecast, when demand has jumped, and how far arrivals stray from the forecast."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from argus_sim.core.forecast import Demand, EwmaForecast, PerfectDemand, WindowForecast

Floats = npt.NDArray[np.float64]


def view(arrival_s: Floats, now: float) -> Any:
    return SimpleNamespace(now_s=now, arrived=int(np.searchsorted(arrival_s, now, side="right")))


def watch(arrival_s: Floats, until_s: float, every_s: float = 5.0) -> tuple[Demand, list[float]]:
    """Demand after looking at arrivals, and when it jumped."""
    demand = Demand(EwmaForecast().build())
    looks = np.arange(every_s, until_s, every_s).tolist()
    return demand, [now for now in looks if demand.look(view(arrival_s, now))]


def poisson(rate_per_s: float, until_s: float, clump: int = 1) -> Floats:
    rng = np.random.default_rng(4)
    n = int(rate_per_s * until_s / clump * 1.2)
    return np.cumsum(rng.exponential(clump / rate_per_s, n)).repeat(clump)


def test_a_steady_rate_is_forecast_and_no_jump() -> None:
    demand, jumped = watch(poisson(5.0, 4000), 4000)
    assert demand.forecast_per_s() == pytest.approx(5.0, rel=0.1)
    assert len(jumped) < 3  # four standard deviations in 800 looks


def test_a_jump_is_noticed_within_two_looks_and_believed() -> None:
    arrival_s = np.concatenate([np.arange(0, 500, 0.5), np.arange(500, 1000, 0.1)])
    demand, jumped = watch(arrival_s, 530)
    assert jumped == [505.0]
    assert demand.forecast_per_s() == pytest.approx(10.0, rel=0.02)


def test_a_look_out_of_turn_does_not_make_a_rate_of_an_instant() -> None:
    """A worker fails 0.2 s after a look, and six came in between: 26 in 5.2 s, no 30 per second."""
    arrival_s = np.concatenate([np.arange(0.5, 30.0), np.linspace(30.1, 34.9, 20), np.full(6, 35.1)])
    demand = Demand(EwmaForecast().build())
    jumped = [now for now in (5, 10, 15, 20, 25, 30, 35, 35.2) if demand.look(view(arrival_s, now))]
    assert jumped == [35.2]
    assert demand.forecast_per_s() == pytest.approx(26 / 5.2)


@pytest.mark.parametrize("clump", [1, 4])
def test_dispersion_is_the_variance_over_the_mean_of_counts(clump: int) -> None:
    """The forecast has an error of its own, of some tenths."""
    dispersions = []
    for part in range(4):
        arrival_s = poisson(2.0, 20_000, clump)
        demand, _ = watch(arrival_s[arrival_s > 4000 * part] - 4000 * part, 4000)
        dispersions.append(demand.dispersion())
    assert clump <= np.mean(dispersions) < 1.8 * clump


def test_dispersion_is_never_below_that_of_chance_nor_unknown() -> None:
    demand, _ = watch(np.arange(0, 2000, 0.5), 2000)
    assert demand.dispersion() == 1.0
    assert Demand(EwmaForecast().build()).dispersion() == 1.0
    assert watch(np.empty(0), 2000)[0].dispersion() == 1.0


def test_a_forecast_that_lags_behind_raises_it() -> None:
    """A rate that swings by half every five minutes, smoothly enough to be no jump."""
    rng = np.random.default_rng(2)
    candidates = np.cumsum(rng.exponential(1 / 3.0, 60_000))
    keep = rng.random(len(candidates)) < (2.0 + np.sin(candidates * 2 * np.pi / 300)) / 3.0
    swinging, _ = watch(candidates[keep], 15_000)
    steady, _ = watch(poisson(2.0, 15_000), 15_000)
    assert swinging.dispersion() > steady.dispersion() + 1.0


def test_the_window_keeps_the_highest_rate() -> None:
    forecaster = WindowForecast(kind="window-max", windows=2).build()
    seen = []
    for rate in (3.0, 1.0, 2.0, 0.5):
        forecaster.observe(rate, 5.0)
        seen.append(forecaster.forecast())
    assert seen == [3.0, 3.0, 2.0, 2.0]
    forecaster.jump_to(0.1)
    assert forecaster.forecast() == 0.1


def test_the_perfect_forecast_is_what_comes() -> None:
    arrival_s = np.concatenate([np.arange(0, 100, 0.5), np.arange(100, 200, 0.1)])
    demand = PerfectDemand(arrival_s, 30.0)
    assert demand.forecast_per_s() == pytest.approx(2.0, rel=0.02)
    assert not demand.look(view(arrival_s, 60.0))
    assert demand.look(view(arrival_s, 90.0))
    assert demand.forecast_per_s() == pytest.approx((10 * 2 + 20 * 10) / 30, rel=0.02)
    assert demand.dispersion() == 1.0
