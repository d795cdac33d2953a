"""Intervals over seeds, differences in pairs, and whether rankings agree, against numbers worked out by hand."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pandas as pd
import pytest

from argus_sim.errors import InputError
from argus_sim.metrics import aggregate, compare, interval, intervals, paired
from argus_sim.metrics.intervals import agreement

NAN = math.nan


def test_interval_is_students() -> None:
    got = interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2  # t(0.975, 3) from a table.
    assert (got.mean, got.n) == (2.5, 4)
    assert (got.low, got.high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-6)
    assert got.half_width == pytest.approx(half, rel=1e-6)
    assert interval([1.0, 2.0], 0.99).half_width > interval([1.0, 2.0], 0.9).half_width


def test_interval_of_few() -> None:
    one = interval([3.0, NAN])
    assert (one.mean, one.n) == (3.0, 1)
    assert math.isnan(one.half_width)
    assert math.isnan(interval([]).mean)
    assert interval([2.0, 2.0]).half_width == 0.0
    with pytest.raises(ValueError, match="confidence"):
        interval([1.0], 95)


def test_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    got = [interval(sample) for sample in rng.normal(7.0, 2.0, (2_000, 5))]
    assert 0.93 < np.mean([one.low <= 7.0 <= one.high for one in got]) < 0.97


def a_summary(**values: dict[int, float]) -> pd.DataFrame:
    """`policy={seed: yield}` on one trace."""
    return pd.DataFrame(
        [
            {"policy": policy, "trace": "day", "seed": seed, "quality_yield": value, "share_of_bound": NAN}
            for policy, of_seed in values.items()
            for seed, value in of_seed.items()
        ]
    )


def test_aggregate() -> None:
    summary = a_summary(pac={0: 0.5, 1: 0.7}, argus={0: 0.9})
    got = aggregate(pd.concat([summary, summary.assign(trace="night")]))
    assert got[["policy", "trace", "seeds"]].to_numpy().tolist() == [
        ["pac", "day", 2],
        ["argus", "day", 1],
        ["pac", "night", 2],
        ["argus", "night", 1],
    ]
    assert got["quality_yield"].to_list() == pytest.approx([0.6, 0.9, 0.6, 0.9])
    assert got["quality_yield_half_width"].iloc[0] == pytest.approx(interval([0.5, 0.7]).half_width)
    assert got["quality_yield_half_width"].isna().to_list() == [False, True, False, True]
    assert got["share_of_bound"].isna().all()


def test_aggregate_wants_a_summary() -> None:
    with pytest.raises(InputError, match="no column trace, seed"):
        aggregate(pd.DataFrame({"policy": ["a"]}))


def test_pairing_takes_out_what_seeds_share() -> None:
    luck = {0: 0.3, 1: 0.9, 2: 0.6}
    summary = a_summary(a={seed: x + 0.02 for seed, x in luck.items()}, b={**luck, 3: 0.1})
    got = paired(summary, "a", "b", "quality_yield")
    assert (got.mean, got.n) == (pytest.approx(0.02), 3)
    assert got.half_width < 1e-6 < interval(luck.values()).half_width
    both = pd.concat([summary, summary.assign(trace="night")])
    assert paired(both, "a", "b", "quality_yield").n == 6
    assert paired(both, "a", "b", "quality_yield", trace="night").n == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "c", "quality_yield"), "no policy 'c'"),
        (("a", "b", "quality_yeild"), "did you mean 'quality_yield'"),
        (("a", "b", "quality_yield"), "no run in common"),
    ],
)
def test_pairing_says_what_is_wrong(arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paired(a_summary(a={0: 0.5}, b={1: 0.6}), *arguments)


def test_compare_two_experiments() -> None:
    old = a_summary(a={0: 0.5, 1: 0.6}, gone={0: 0.5})
    new = a_summary(a={0: 0.55, 1: 0.65, 2: 0.1}, b={0: 0.2})
    got = compare(new, old).set_index("metric").loc["quality_yield"]
    assert (got["policy"], got["trace"], got["pairs"]) == ("a", "day", 2)
    assert (got["a"], got["b"], got["difference"]) == pytest.approx((0.6, 0.55, 0.05))
    assert got["half_width"] == pytest.approx(0.0, abs=1e-9)
    same = compare(old, old)
    assert (same.loc[same["metric"] == "quality_yield", "difference"] == 0).all()
    with pytest.raises(InputError, match="in common"):
        compare(a_summary(a={0: 0.5}), a_summary(b={0: 0.5}))


def test_a_table_of_a_sweep_is_several_summaries() -> None:
    point = a_summary(a={0: 0.5}, b={0: 0.6})
    swept = pd.concat([point.assign(slo="2"), point.assign(slo="4")])
    for use in (
        lambda: aggregate(swept),
        lambda: paired(swept, "a", "b", "quality_yield"),
        lambda: compare(swept, swept),
    ):
        with pytest.raises(InputError, match="two rows for a day 0; of a sweep, choose the rows of one point"):
            use()


def test_examples_in_docstrings() -> None:
    failed, attempted = doctest.testmod(intervals)
    assert attempted
    assert not failed


# --------------------------------------------------------------------------------------------- agreement


def ranked(**yields: list[list[float]]) -> pd.DataFrame:
    """Quality yields by policy: those of each seed on trace ``a``, then on trace ``b``."""
    rows = [
        {"policy": policy, "trace": trace, "seed": seed, "quality_yield": value}
        for policy, of in yields.items()
        for trace, values in zip("ab", of, strict=True)
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_the_same_ranking_agrees() -> None:
    table = ranked(x=[[0.9, 0.91], [0.8, 0.82]], y=[[0.5, 0.51], [0.4, 0.42]], z=[[0.1, 0.11], [0.0, 0.02]])
    got = agreement(table, "a", "b")
    assert (got.tau, got.pairs, got.same, got.swapped, got.undecided) == (1.0, 3, 3, (), ())


def test_a_swap_is_one_that_both_traces_tell_apart() -> None:
    sure = ranked(x=[[0.9, 0.91], [0.4, 0.41]], y=[[0.5, 0.51], [0.8, 0.81]])
    got = agreement(sure, "a", "b")
    assert (got.tau, got.same, got.swapped, got.undecided) == (-1.0, 0, (("x", "y"),), ())
    # On b the difference is 0.1 in one seed and -0.3 in the other: nobody knows.
    unsure = ranked(x=[[0.9, 0.91], [0.7, 0.4]], y=[[0.5, 0.51], [0.6, 0.7]])
    got = agreement(unsure, "a", "b")
    assert (got.tau, got.same, got.swapped, got.undecided) == (-1.0, 0, (), (("x", "y"),))


def test_what_rankings_cannot_be_compared() -> None:
    table = ranked(x=[[0.9], [0.8]], y=[[0.5], [0.4]])
    assert agreement(table, "a", "b").undecided == (("x", "y"),)  # one seed decides nothing
    with pytest.raises(InputError, match="no trace 'c'"):
        agreement(table, "a", "c")
    half = table[(table["policy"] != "y") | (table["trace"] == "a")]
    with pytest.raises(InputError, match="not run under the same policies"):
        agreement(half, "a", "b")
