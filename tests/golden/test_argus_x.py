"""The programs and prices behind argus-x, on cases small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from argus_sim.core.placement import Demand, place, worker_prices
from argus_sim.core.pricing import Pool, backlog_prices, classes, longest_wait_s


def demand(per_s: float) -> Demand:
    """Model 0 takes 4 s for a quality of 1 or 2 s for 0.9; model 1 takes 1 s for 0.6."""
    return Demand(
        np.array([[1.0, 0.9, 0.6]]), np.array([1.0]), np.array([[4.0, 2.0, 0.0], [0.0, 0.0, 1.0]]), per_s
    )


@pytest.mark.parametrize(
    ("per_s", "price"),
    [
        (0.4, 0.0),  # 2 workers serve 0.5/s in full: there is time left
        (0.8, 0.05),  # some in full, some not: a second more turns 0.9 into 1 at a cost of 2 s
        (1.2, 0.45),  # above 1/s somebody is not served: a second more serves half an image of 0.9
    ],
)
def test_price_of_a_worker(per_s: float, price: float) -> None:
    prices = worker_prices(demand(per_s), (2, 0))
    assert prices == (pytest.approx(price), float("inf"))


def test_two_models_share_an_overload() -> None:
    """1.5/s on a worker of each: model 1 serves 1/s at 0.6, model 0 the other 0.5/s at 0.9.

    A second more of model 0 makes half of a 0.9 out of a 0.6 and frees half a second of model 1, worth nothing;
    or it serves 0.9 for 2 s. At exactly 1.5/s both are dual solutions, so it is asked at 1.6/s.
    """
    assert worker_prices(demand(1.6), (1, 1)) == (pytest.approx(0.45), pytest.approx(0.6))


def test_a_load_is_made_if_it_is_repaid() -> None:
    """At 1.5/s two workers of model 0 yield 0.9/s; one of each yields 0.5 x 0.9 + 1 x 0.6 = 1.05/s.

    The 0.15/s gained over a horizon H pay for 10 s of a worker, which yields 0.6/s at best: from H = 40 s on.
    """
    loads_s = (10.0, 10.0)
    assert place(demand(1.5), (2, 0), loads_s, horizon_s=39.0) == (2, 0)
    assert place(demand(1.5), (2, 0), loads_s, horizon_s=41.0) == (1, 1)


def pool(**changes: object) -> Pool:
    values: dict[str, object] = {
        "quality": np.array([[1.0, 0.9]]),
        "work_s": np.array([4.0, 2.0]),
        "chance": np.ones(2),
        "latest_s": np.array([10.0, 10.0]),
        "share": np.array([1.0]),
        "otherwise": np.array([0.0]),
        "workers": 2,
        "full_wait_s": 0.0,
        "half_full": 1.0,
    }
    return Pool(**(values | changes))  # type: ignore[arg-type]


WAITS = np.linspace(0.0, 10.0, 41).tolist()


def test_prices_of_a_fluid() -> None:
    """Hardly any noise, and demand between what full images and faster ones need: the price of the program.

    Above it everybody takes the faster variant and the backlog falls, below it everybody is served in full and it
    rises: in between, most waits have a price of 0.05.
    """
    prices = np.array(backlog_prices(pool(), 0.8, 1e-3, WAITS, 1e5))
    assert np.median(prices) == pytest.approx(0.05, rel=0.1)
    assert backlog_prices(pool(), 0.3, 1e-3, WAITS, 1e5)[10] == pytest.approx(0.0, abs=1e-3)
    # Twice the capacity: whatever is added, somebody else is not served.
    assert backlog_prices(pool(), 2.0, 1e-3, WAITS, 1e5)[20] == pytest.approx(0.45, rel=0.1)


def test_prices_rise_with_the_wait_and_with_demand() -> None:
    tables = [backlog_prices(pool(), d, 1.0, WAITS, 2000.0) for d in (0.3, 0.6, 0.9, 1.2)]
    for prices in tables:
        assert prices == sorted(prices)
        assert prices[0] >= 0.0
    assert np.all(np.diff(np.array(tables), axis=0)[:, 5:] > -1e-9)


def test_an_alternative_bounds_the_price() -> None:
    """If a prompt is worth 0.85 elsewhere, a second here costs at most (0.9 - 0.85) / 2, or it goes there."""
    prices = backlog_prices(pool(otherwise=np.array([0.85])), 3.0, 1.0, WAITS, 2000.0)
    assert max(prices) <= 0.05 / 2 * 1.001 + 0.15 / 4


def test_classes_tell_apart_what_differs() -> None:
    predicted = np.array([[0.9, 0.5], [0.91, 0.5], [0.5, 0.9], [0.51, 0.9], [0.92, 0.5], [0.52, 0.9]])
    group, mean = classes(predicted, np.arange(4), 2)
    assert group[0] == group[1] == group[4] != group[2] == group[3] == group[5]
    assert mean[group[0]] == pytest.approx([0.905, 0.5])
    same, mean = classes(np.ones((5, 2)), np.arange(5), 4)
    assert set(same) == {0}
    assert len(mean) == 1


def test_longest_wait() -> None:
    assert longest_wait_s(12.0, 5.0, 4, 5.0) == pytest.approx(6.0)
    assert longest_wait_s(4.0, 5.0, 4, 5.0) == 0.0
