"""The report's charts draw what the tables say."""

from __future__ import annotations

import doctest
import math
import re

import numpy as np
import pytest

from argus_sim.domain import Outcome
from argus_sim.metrics import timeline
from argus_sim.record import FaultRecord, PlanRecord, RunRecord
from argus_sim.report.charts import faults, labels, svg
from argus_sim.report.charts import policy as policy_module
from argus_sim.report.charts.axis import axis_charts, is_wide
from argus_sim.report.charts.draw import Drawing
from argus_sim.report.charts.story import COLUMNS, TraceStory, tell
from argus_sim.report.policy_style import STYLES
from argus_sim.report.report import DARK, LIGHT
from tests.make_record import make_record, of_requests
from tests.make_story import make_axis, make_story

TOTALS = {"p": dict.fromkeys(("latency_mean_s", "relative_quality", "slo_violation_ratio"), 0.5)}


def story_of(record: RunRecord) -> TraceStory:
    """Of one policy, "p", with one seed."""
    return tell(
        "t",
        {"p": [timeline(record)]},
        {"p": record.frame()},
        {"p": record.attempts_frame()},
        {"p": record.events()},
    )


@pytest.mark.parametrize("module", [policy_module, svg, faults, labels], ids=lambda module: module.__name__)
def test_examples(module: object) -> None:
    failed, attempted = doctest.testmod(module, extraglobs={"np": np})  # type: ignore[arg-type]
    assert attempted
    assert not failed


def points(d: str) -> list[tuple[int, int]]:
    """The corners of a path of M, l, h and v."""
    found: list[tuple[int, int]] = []
    x = y = 0
    for kind, rest in re.findall(r"([Mlhv])([^Mlhv]*)", d):
        numbers = [int(n) for n in re.findall(r"-?\d+", rest)]
        dx, dy = (numbers[0], 0) if kind == "h" else (0, numbers[0]) if kind == "v" else numbers
        x, y = (dx, dy) if kind == "M" else (x + dx, y + dy)
        found.append((x, y))
    return found


def test_a_line_goes_through_its_points_to_half_a_unit() -> None:
    rng = np.random.default_rng(7)
    x, y = np.arange(0.0, 500.0, 5.3), rng.uniform(0, 1000, 95)
    got = points(svg.line(x, y))
    assert np.abs(np.array(got) - np.column_stack((x, y))).max() <= 0.5


def test_a_gap_in_the_values_is_a_gap_in_the_line() -> None:
    d = svg.line(np.arange(5.0), np.array([1.0, 2.0, math.nan, 4.0, 5.0]))
    assert d.count("M") == 2


@pytest.mark.parametrize("page", [LIGHT, DARK])
@pytest.mark.parametrize("policy", STYLES)
def test_lines_stand_out_from_the_page(policy: str, page: str) -> None:
    assert svg.contrast(svg.readable(STYLES[policy][0], page), page) >= 3


def test_placement_is_what_the_workers_ran() -> None:
    """Two workers over 240 s, so that a column is a second."""
    rows = [
        (0.0, 0.0, 100.0, 500.0, 0, 0, Outcome.ON_TIME, 1.0),
        (0.0, 100.2, 100.8, 500.0, 2, 0, Outcome.ON_TIME, 0.9),
        (0.0, 50.1, 50.3, 500.0, 4, 1, Outcome.ON_TIME, 0.8),
        (0.0, math.nan, math.nan, 500.0, -1, -1, Outcome.REJECTED, math.nan),
    ]
    record = of_requests(rows, duration_s=240.0)
    story = story_of(record)
    (policy,) = story.policies
    assert list(policy.mix) == ["sdxl", "sdxl/ac-20", "tiny-sd"]
    assert policy.doing.shape == (2, COLUMNS)
    assert {(w, c): policy.doing[w, c] for w, c in np.argwhere(policy.doing >= 0).tolist()} == {
        (0, 50): 0,
        (0, 100): 1,
        (1, 50): 2,
    }
    assert policy.busy[1, 50] == pytest.approx(0.2)
    assert policy.served[-1] == 0.75
    assert [(r.text, r.requests, r.on_time) for r in policy.reasons] == [("by hand", 4, 0.75)]


def test_shares_and_reasons_cover_every_request() -> None:
    story = make_story("day", ("a", "b"))
    for policy in story.policies:
        assert sum(reason.requests for reason in policy.reasons) == 400
        assert policy.served[-1] < 1
        assert np.isclose(sum(reason.share for reason in policy.reasons), 1)


def test_faults_loads_and_plans_are_marked() -> None:
    record = make_record(1, requests=200, duration_s=3600.0)
    story = story_of(record)
    trace = Drawing(["p"], ["-"]).trace(story, [], TOTALS)
    kinds = {path.kind: path.d for path in trace["lines"][0].paths}
    start, end = (2000 * s / 3600 for s in (0.6 * 3600, 0.6 * 3600 + 600))
    assert kinds["outage"] == f"M{start:.0f} 0h{end - start:.0f}v1000H{start:.0f}z"
    policy = trace["policies"][0]
    marks = {path.kind: path.d for path in policy["placement"].paths}
    assert marks["down"].startswith(f"M{start:.0f} 0h")
    assert marks["loading"].count("M") == 4
    assert marks["plans"].count("M") == policy["plans"] == 2
    assert policy["first_plans"][1]["workers"] == "1 × sdxl, 3 × tiny-sd/small-sd"


def test_a_worker_that_never_returns_is_down_to_the_end() -> None:
    record = of_requests(
        [(0.0, 0.0, 1.0, 5.0, 0, 0, Outcome.ON_TIME, 1.0)],
        duration_s=120.0,
        plans=[PlanRecord(0.0, "start", {"sdxl": 2})],
        faults=[FaultRecord(60.0, 1, "lost")],
    )
    story = story_of(record)
    trace = Drawing(["p"], ["-"]).trace(story, [], TOTALS)
    (outage,) = [path.d for path in trace["lines"][1].paths if path.kind == "outage"]
    assert outage == "M1000 0h1000v1000H1000z"


def test_an_axis_has_its_values_where_they_are() -> None:
    """Three numbers on a logarithmic scale, of which the last policy has two."""
    drawing = Drawing(["pac", "argus", "<b>x</b>"], ["-"] * 3)
    story = make_axis("gpus", {"1": 1.0, "10": 10.0, "1000": 1000.0})
    (row,) = axis_charts(drawing, story)["traces"]
    chart = row["charts"][0]
    assert [tick.at for tick in chart.x] == ["5.00%", "35.00%", "95.00%"]
    assert chart.x_label == "gpus (logarithmic)"
    paths = {(path.policy, path.kind): path.d for path in chart.paths}
    low, high = 0.9 - 0.04 - 0.2 - 0.01, 0.9 + 0.01
    room = 0.05 * (high - low)

    def height(value: float) -> int:
        return round(1000 * (high + room - value) / (high - low + 2 * room))

    want = [(100, height(0.8)), (700, height(0.78)), (1900, height(0.76))]
    assert points(paths[1, "line"]) == want
    assert re.findall(r"M(\d+) (\d+)h0", paths[1, "points"]) == [(str(x), str(y)) for x, y in want]
    assert paths[1, "interval"].startswith(f"M100 {height(0.79)}V{height(0.81)}")
    assert [x for x, _ in points(paths[2, "line"])] == [700, 1900]
    assert "argus 0.760 at 1000 to 0.800 at 1" in chart.label
    data = drawing.data["charts"][chart.id]
    assert data["series"][2] == [2, [None, 0.68, 0.66], [None, 0.01, 0.01]]


def test_names_stand_side_by_side_and_are_not_joined() -> None:
    drawing = Drawing(["pac", "argus", "<b>x</b>"], ["-"] * 3)
    (row,) = axis_charts(drawing, make_axis("trouble", {"none": None, "some": None}))["traces"]
    violations = row["charts"][1]
    assert [tick.text for tick in violations.x] == ["none", "some"]
    assert {path.kind for path in violations.paths} == {"interval", "points"}
    across = {
        path.policy: [int(x) for x in re.findall(r"M(\d+) ", path.d)]
        for path in violations.paths
        if path.kind == "points"
    }
    assert across == {0: [267, 1267], 1: [500, 1500], 2: [1733]}
    # No violations are none: the interval of the first does not reach below zero.
    (interval,) = [path.d for path in violations.paths if path.kind == "interval" and path.policy == 0]
    assert interval.startswith("M267 1000V")


@pytest.mark.parametrize(
    ("numbers", "wide"), [([1.0, 20.0], False), ([1.0, 21.0], True), ([0.0, 50.0], False), ([], False)]
)
def test_what_stands_on_a_logarithmic_scale(numbers: list[float], wide: bool) -> None:
    assert is_wide(numbers) == wide


#: Where eleven policies were on the two fronts of a bursty trace, in parts of the box.
CROWD = [
    ("static", 0.70, 0.44), ("clipper-ha", 0.73, 0.95), ("clipper-ht", 0.73, 0.10), ("infaas", 0.76, 0.30),
    ("sommelier", 0.787, 0.297), ("proteus", 0.795, 0.289), ("nirvana", 0.70, 0.68), ("pac", 0.62, 0.40),
    ("diffserve", 0.82, 0.28), ("argus", 0.622, 0.40), ("argus-x", 0.64, 0.402),
]  # fmt: skip


def test_names_of_points_lie_on_nothing() -> None:
    names, at = [name for name, _, _ in CROWD], [(x, y) for _, x, y in CROWD]
    placed = labels.place_labels(at, names)
    boxes = [labels._box(label, 0.0205 * len(name)) for label, name in zip(placed, names, strict=True)]
    for i, box in enumerate(boxes):
        assert min(box) > -0.02
        assert max(box) < 1.02
        assert not any(labels._shared(box, other) > 1e-4 for other in boxes[:i]), names[i]
        assert not any(labels._inside(point, box) for point in at), names[i]
    # What is not next to its point has a line that leads to it.
    for label, (x, y) in zip(placed, at, strict=True):
        assert label.led == (math.hypot(label.x - x, label.y - y) > 0.065)
    assert placed == labels.place_labels(at, names)


def test_times_at_which_workers_were_slow_are_marked_on_all_charts() -> None:
    record = make_record(1, requests=400, duration_s=3600.0)
    record.faults[:] = [
        FaultRecord(600.0, 1, "slow"),
        FaultRecord(1200.0, 1, "normal"),
        FaultRecord(3000.0, 0, "slow"),
    ]
    drawing = Drawing(["p"], ["-"])
    drawn = drawing.trace(story_of(record), [], TOTALS)
    assert (drawn["lost"], drawn["slow"]) == (0, 2)
    for chart in drawn["lines"]:
        spans = [points(path.d)[0][0] for path in chart.paths if path.kind == "slowed"]
        assert sorted(spans) == pytest.approx([2000 * 600 / 3600, 2000 * 3000 / 3600], abs=1)
    (framed,) = [path.d for path in drawn["policies"][0]["placement"].paths if path.kind == "slow"]
    assert framed.count("M") == 2
    assert "slow" in drawn["policies"][0]["placement"].note
    assert "hatched" not in drawn["policies"][0]["placement"].note
