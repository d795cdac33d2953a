"""Figures: right numbers, whole labels, the same bytes every time."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from argus_sim.domain import Outcome
from argus_sim.metrics import aggregate, summarise, timeline
from argus_sim.record import RunRecord
from argus_sim.report import plot_style, plots, policy_style
from argus_sim.report.plots import (
    figure_front,
    figure_latency_cdf,
    figure_level_mix,
    figure_timeline,
    figure_totals,
)
from tests.make_record import make_record, of_requests

NAN = math.nan
LEVELS = {"argus": (0, 1, 2, 4), "proteus": (0, 3, 4), "clipper-ha": (0,), "mine$2$": (2, 3)}


@pytest.fixture(scope="module")
def runs() -> dict[str, list[RunRecord]]:
    return {
        policy: [make_record(seed, requests=900, duration_s=5_400.0, workers=2, levels=levels) for seed in (0, 1)]
        for policy, levels in LEVELS.items()
    }


@pytest.fixture(scope="module")
def totals(runs: dict[str, list[RunRecord]]) -> pd.DataFrame:
    rows = [
        {"policy": policy, "trace": trace, "seed": seed, **summarise(record)}
        for trace in ("a day of bursts", "night")
        for policy, records in runs.items()
        for seed, record in enumerate(records)
    ]
    return aggregate(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def timelines(runs: dict[str, list[RunRecord]]) -> dict[str, list[pd.DataFrame]]:
    return {policy: [timeline(record) for record in records] for policy, records in runs.items()}


@pytest.fixture(scope="module")
def drawings(
    runs: dict[str, list[RunRecord]], totals: pd.DataFrame, timelines: dict[str, list[pd.DataFrame]]
) -> dict[str, Callable[[], Figure]]:
    outcomes = {policy: records[0].frame() for policy, records in runs.items()}
    return {
        "timeline": lambda: figure_timeline(timelines, "a day of bursts"),
        "totals": lambda: figure_totals(totals),
        "front": lambda: figure_front(totals),
        "mix": lambda: figure_level_mix(timelines["argus"][0], "argus"),
        "cdf": lambda: figure_latency_cdf(outcomes),
    }


NAMES = ["timeline", "totals", "front", "mix", "cdf"]


@pytest.mark.parametrize("name", NAMES)
def test_same_bytes_and_whole_labels(name: str, drawings: dict[str, Callable[[], Figure]]) -> None:
    before = dict(matplotlib.rcParams)
    figure = drawings[name]()
    first = plots.render(figure, "svg")
    assert dict(matplotlib.rcParams) == before, "the caller's settings are left alone"
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "svg.hashsalt": "other"}):
        again = plots.render(drawings[name](), "svg")
    assert again == first, "the caller's settings are of no consequence"
    assert b"<dc:date>" not in first
    assert_all_is_inside(figure)


def assert_all_is_inside(figure: Figure) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn, whole = figure.get_tightbbox(canvas.get_renderer()), figure.bbox_inches
    assert drawn.x0 >= whole.x0
    assert drawn.x1 <= whole.x1
    assert drawn.y0 >= whole.y0
    assert drawn.y1 <= whole.y1


def test_save_and_embed(tmp_path: Path, drawings: dict[str, Callable[[], Figure]]) -> None:
    figure = drawings["cdf"]()
    png, svg = plots.save(figure, tmp_path / "figures", "cdf")
    assert sorted(path.name for path in png.parent.iterdir()) == ["cdf.png", "cdf.svg"]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert svg.read_bytes() == plots.render(figure, "svg")
    assert png.read_bytes() == plots.render(figure, "png")
    small = plot_style.embed(figure)
    assert len(small) <= min(len(svg.read_bytes()), len(plots.render(figure, "png", dpi=110)))


def test_no_pyplot() -> None:
    code = "import sys, argus_sim.report.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lines_are_ratios_of_moving_sums() -> None:
    # Nine requests on time in one minute, one late in the next: 1 in 10 is late, not the mean of 0 and 1.
    rows = [(1.0, 1.0, 2.0, 9.0, 0, 0, Outcome.ON_TIME, 0.9)] * 9
    rows += [(61.0, 61.0, 99.0, 70.0, 0, 0, Outcome.LATE, 0.9)]
    table = timeline(of_requests(rows, duration_s=180.0))
    ratio = figure_timeline({"argus": [table]}, "t", smooth_min=3.0).axes[2].get_lines()[0].get_ydata()
    assert np.asarray(ratio) == pytest.approx([0.1, 0.1, 1.0])
    sharp = figure_timeline({"argus": [table]}, "t", smooth_min=1.0)
    throughput, quality, violations, yields = (np.asarray(ax.get_lines()[0].get_ydata()) for ax in sharp.axes)
    assert throughput == pytest.approx([9, 0, 0])
    assert quality == pytest.approx([0.9, NAN, NAN], nan_ok=True)
    assert violations == pytest.approx([0, 1, NAN], nan_ok=True)
    assert yields == pytest.approx([0.9, 0.0, NAN], nan_ok=True)


def test_seeds_are_averaged_where_they_have_a_value() -> None:
    one = timeline(of_requests([(1.0, 1.0, 2.0, 9.0, 0, 0, Outcome.ON_TIME, 0.9)]))
    two = timeline(of_requests([(61.0, 61.0, 62.0, 70.0, 0, 0, Outcome.ON_TIME, 0.5)]))
    quality = figure_timeline({"argus": [one, two]}, "t", smooth_min=1.0).axes[1].get_lines()[0].get_ydata()
    assert np.asarray(quality) == pytest.approx([0.9, 0.5])


def test_timelines_of_a_figure_share_their_windows() -> None:
    record = of_requests([(1.0, 1.0, 2.0, 9.0, 0, 0, Outcome.ON_TIME, 0.9)])
    with pytest.raises(ValueError, match="same windows"):
        figure_timeline({"argus": [timeline(record, 60.0), timeline(record, 30.0)]}, "t")


def test_seeds_may_have_traces_of_different_lengths() -> None:
    """Where only the longer one goes on, the line is that one's."""
    row = (1.0, 1.0, 2.0, 9.0, 0, 0, Outcome.ON_TIME, 0.9)
    late = (125.0, 125.0, 127.0, 130.0, 0, 0, Outcome.ON_TIME, 0.5)
    short, long = timeline(of_requests([row])), timeline(of_requests([row, late], duration_s=180.0))
    for seeds in ([short, long], [long, short]):
        figure = figure_timeline({"argus": seeds}, "t", smooth_min=1.0)
        quality = figure.axes[1].get_lines()[0].get_ydata()
        assert np.asarray(quality) == pytest.approx([0.9, NAN, 0.5], nan_ok=True)
        assert figure.axes[1].get_xlim() == (0.0, 3.0)
        assert any("different lengths" in text.get_text() for text in figure.findobj(Text))


def test_totals_show_the_aggregate(totals: pd.DataFrame) -> None:
    figure = figure_totals(totals)
    yields = figure.axes[0]
    shown = dict(
        zip(
            [label.get_text() for label in yields.get_yticklabels()],
            [patch.get_width() for patch in yields.patches],
            strict=True,
        )
    )
    expected = totals[totals["trace"] == "a day of bursts"].set_index("policy")["quality_yield"]
    assert shown == pytest.approx(expected.to_dict())
    assert list(shown.values()) == sorted(shown.values()), "best on top"


def test_a_level_mix_lumps_the_rare_ones_together(timelines: dict[str, list[pd.DataFrame]]) -> None:
    table = timelines["argus"][0].copy()
    for rank in range(20):
        table[f"served:extra-{rank:02}"] = rank + 1
    figure = figure_level_mix(table, "argus")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == 14, "twelve variants, the others, and the load"
    assert labels[0] == "offered load"
    assert labels[1].startswith("others ")
    assert sum(float(label.split()[-2]) for label in labels[1:]) == pytest.approx(100, abs=0.5)


def test_a_curve_levels_off_at_what_was_served() -> None:
    rows = [(0.0, 0.0, 4.0, 12.0, 0, 0, Outcome.ON_TIME, 1.0), (0.0, NAN, NAN, 12.0, -1, -1, Outcome.LOST, NAN)]
    curve = figure_latency_cdf({"argus": of_requests(rows).frame()}).axes[0].get_lines()[-1]
    assert np.max(np.asarray(curve.get_ydata())) == 0.5


def test_runs_in_which_nothing_was_served_still_draw() -> None:
    record = of_requests([(float(t), NAN, NAN, t + 9.0, -1, -1, Outcome.REJECTED, NAN) for t in range(100)])
    totals = aggregate(pd.DataFrame([{"policy": "argus", "trace": "t", "seed": 0, **summarise(record)}]))
    for figure in (
        figure_timeline({"argus": [timeline(record)]}, "t"),
        figure_totals(totals),
        figure_front(totals),
        figure_level_mix(timeline(record), "argus"),
        figure_latency_cdf({"argus": record.frame()}),
    ):
        plots.render(figure, "svg")


def test_styles_are_fixed_and_distinct() -> None:
    shipped = plot_style.STYLES
    assert len({repr(style) for style in shipped.values()}) == len(shipped)
    strangers = [f"stranger-{i}" for i in range(20)]
    got = plots.styles([*shipped, *strangers])
    assert {name: got[name] for name in shipped} == shipped
    assert len({repr(style) for style in got.values()}) == len(got)
    assert plots.styles(reversed(strangers)) == plots.styles(strangers)
    assert len(plots.styles(f"s{i}" for i in range(40))) == 40, "more than there are styles: they repeat"


def test_examples_in_docstrings() -> None:
    failed, attempted = doctest.testmod(policy_style)
    assert attempted
    assert not failed
