"""Charts and tables of one policy on one trace: what it decided, when, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from argus_sim.report.charts.chart import Chart, Path, rounded
from argus_sim.report.charts.faults import spans
from argus_sim.report.charts.story import MAX_PLANS, MAX_REASONS, PolicyStory, TraceStory
from argus_sim.report.charts.svg import HEIGHT, WIDTH, Tick, area, around, box, line, ticks

if TYPE_CHECKING:
    from argus_sim.report.charts.draw import Drawing

#: Sequential colours of a ladder, best variant first; told apart in light and dark and without colour vision.
LADDER = (
    "#365c8d",
    "#2a8a8c",
    "#3dae74",
    "#8fc640",
    "#e0cf2b",
    "#f2a13a",
    "#d9603b",
    "#a83655",
    "#6d3b78",
    "#8a8f96",
)


def policy_charts(drawing: Drawing, story: TraceStory, policy: PolicyStory, group: int) -> dict[str, Any]:
    number = drawing.number[policy.name]
    colours = [LADDER[min(i, len(LADDER) - 1)] for i in range(len(policy.mix))]
    events = policy.events
    plans = events["plans"]
    load_s = sum(load["finish_s"] - load["start_s"] for load in events["loads"] if load["finish_s"] is not None)
    share = {name: float(np.nansum(rate)) for name, rate in policy.mix.items()}
    total = sum(share.values()) or 1.0
    shown = policy.reasons[:MAX_REASONS]
    return {
        "name": policy.name,
        "number": number,
        "mix": _mix(drawing, story, policy, group, colours),
        # A live server may not say which worker made an image.
        "placement": _placement(drawing, story, policy, group, colours) if len(policy.doing) else None,
        "ladder": [(name, colours[i], f"{100 * share[name] / total:.1f} %") for i, name in enumerate(policy.mix)],
        "plans": len(plans),
        "gap": _gap(plans),
        "loads": len(events["loads"]),
        "load_s": f"{load_s:,.0f}",
        "lost": sum(fault["kind"] == "lost" for fault in events["faults"]),
        "planning": _planning(events.get("planning_s", [])),
        "first_plans": [
            {
                "at": _moment(float(plan["at_s"])),
                "reason": plan["reason"],
                "workers": ", ".join(f"{count} × {_short(what)}" for what, count in plan["workers"].items()),
            }
            for plan in plans[:MAX_PLANS]
        ],
        "reasons": shown,
        "more_reasons": len(policy.reasons) - len(shown),
    }


def _mix(drawing: Drawing, story: TraceStory, policy: PolicyStory, group: int, colours: list[str]) -> Chart:
    x, x_ticks = drawing.time(story)
    stack = np.cumsum(
        [np.nan_to_num(rate) for rate in policy.mix.values()] or [np.zeros(len(story.clock.at))], axis=0
    )
    y = around([0.0, *story.offered.tolist(), *stack[-1].tolist()], zero=True)
    at = x.x(story.clock.at)
    below = np.zeros(len(at))
    paths = []
    for level, colour in zip(stack, colours, strict=False):
        paths.append(Path(area(at, y.y(below), y.y(level)), "layer", colour=colour))
        below = level
    paths.append(Path(line(at, y.y(story.offered)), "offered"))
    said = ", ".join(policy.mix)
    chart = Chart(
        id=f"t{group}-mix-{drawing.number[policy.name]}",
        title="Which variants served",
        note="images per minute; dashed: offered load",
        label=f"Images per minute by variant for {policy.name} on {story.name}, over time: {said or 'none'}.",
        x=x_ticks,
        y=ticks(y, 3),
        x_label=story.clock.label,
        paths=paths,
        height=170,
    )
    drawing.data["charts"][chart.id] = {
        "kind": "mix",
        "group": group,
        "series": [[name, colours[i], rounded(rate)] for i, (name, rate) in enumerate(policy.mix.items())],
    }
    return chart


def _placement(drawing: Drawing, story: TraceStory, policy: PolicyStory, group: int, colours: list[str]) -> Chart:
    x, x_ticks = drawing.time(story)
    rows, columns = policy.doing.shape
    row, width = HEIGHT / rows, WIDTH / columns
    per_x = 60.0 if "minutes" in story.clock.label else 3600.0
    boxes: dict[tuple[int, int], list[str]] = {}
    # How busy a worker was is shown in three strengths.
    strength = np.where(policy.doing < 0, -1, np.minimum(2, (3 * policy.busy).astype(int)))
    for worker in range(rows):
        start = 0
        for column in range(1, columns + 1):
            here = (policy.doing[worker, start], strength[worker, start])
            if column < columns and (policy.doing[worker, column], strength[worker, column]) == here:
                continue
            if here[0] >= 0:
                cell = box(start * width, column * width, (worker + 0.08) * row, (worker + 0.92) * row)
                boxes.setdefault((int(here[0]), int(here[1])), []).append(cell)
            start = column
    paths = [
        Path("".join(found), "layer", colour=colours[code], opacity=(0.4, 0.7, 1.0)[level])
        for (code, level), found in sorted(boxes.items())
    ]
    marks = {
        state: "".join(
            box(x.part(a / per_x) * WIDTH, x.part(b / per_x) * WIDTH, worker * row, (worker + 1) * row)
            for worker, a, b in spans(policy.events["faults"], state, story.clock.end * per_x)
            if worker < rows
        )
        for state in ("down", "slow")
    }
    loads = []
    for load in policy.events["loads"]:
        if load["worker"] < rows:
            at, end = (x.part((load[k] or load["start_s"]) / per_x) * WIDTH for k in ("start_s", "finish_s"))
            loads.append(f"M{at:.0f} {(load['worker'] + 0.5) * row:.0f}h{max(1, round(end - at))}")
    paths += [Path(marks["slow"], "slow"), Path(marks["down"], "down")]
    paths.append(Path("".join(dict.fromkeys(loads)), "loading"))
    decided = sorted({round(x.part(plan["at_s"] / per_x) * WIDTH) for plan in policy.events["plans"]})
    paths.append(Path("".join(f"M{a} 0v-40" for a in decided), "plans"))
    lost = sum(fault["kind"] == "lost" for fault in policy.events["faults"])
    left_out = policy.events["workers"] - rows
    chart = Chart(
        id=f"t{group}-place-{drawing.number[policy.name]}",
        title="What each worker ran",
        note="the paler the idler; bar: a model is loaded; "
        + ("hatched: down; " if marks["down"] else "")
        + ("dashed frame: slow; " if marks["slow"] else "")
        + "ticks above: a placement was decided"
        + (f"; {left_out} more workers are not shown" if left_out > 0 else ""),
        label=f"What each worker ran for {policy.name} on {story.name}, over time."
        + (f" Times that workers were lost: {lost}." if lost else ""),
        x=x_ticks,
        y=[Tick(f"{100 * (1 - (w + 0.5) / rows):.2f}%", str(w)) for w in range(0, rows, 1 + rows // 13)],
        x_label=story.clock.label,
        paths=paths,
        height=max(70, min(300, 20 * rows)),
    )
    codes = "0123456789abcdefghijklmnopqrstuvwxyz"
    drawing.data["charts"][chart.id] = {
        "kind": "place",
        "group": group,
        "names": list(policy.mix),
        "colours": colours,
        "rows": ["".join("-" if c < 0 else codes[min(c, 35)] for c in doing) for doing in policy.doing.tolist()],
    }
    return chart


def _short(what: str) -> str:
    """What a group of workers serves, without repeating the model: ``sdxl+sdxl/ac-5`` is ``sdxl, ac-5``."""
    names = what.split("+")
    model = names[0].partition("/")[0]
    tails = [name.removeprefix(f"{model}/") for name in names]
    return "/".join(tails) if len(tails) < 4 else f"{tails[0]} … {tails[-1]}"


def _moment(at_s: float) -> str:
    """A time of the trace as hours, minutes and seconds.

    >>> _moment(3723.4)
    '1:02:03'
    """
    minutes, seconds = divmod(int(at_s), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _planning(took_s: list[float]) -> str:
    """How long plans took to work out, in words; empty where that was not recorded.

    >>> _planning([0.001, 0.002, 0.25])
    '3 plans were worked out, in 2 ms in the median and 250 ms at most; 0.25 s in all'
    """
    if not took_s:
        return ""
    median, most = (f"{1000 * took:.3g} ms" for took in (float(np.median(took_s)), max(took_s)))
    text = f"{len(took_s):,} plans were worked out, in {median} in the median and {most} at most"
    return f"{text}; {sum(took_s):.2g} s in all"


def _gap(plans: list[dict[str, Any]]) -> str:
    """The median time between placements, in words; empty where there are not two."""
    if len(plans) < 2:
        return ""
    gap_s = float(np.median(np.diff([plan["at_s"] for plan in plans])))
    return f"{gap_s / 60:.3g} min" if gap_s >= 120 else f"{gap_s:.3g} s"
