"""The report needs nothing but itself, says where its numbers come from, and comes out the same every time."""

from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from argus_sim.files import write_atomically
from argus_sim.metrics import METRICS, aggregate
from argus_sim.report import findings, terminal_table, write_report
from tests.make_story import make_axis, make_story

NAN = math.nan
LOCK = {"name": "fig7", "seeds": (0, 1), "profile": Path("profiles/a"), "cluster": {"workers": 8, "speed": None}}


def a_summary(
    yields: dict[str, list[float]], *, traces: tuple[str, ...] = ("day",), **more: float
) -> pd.DataFrame:
    rows = [
        {
            "policy": policy,
            "trace": trace,
            "seed": seed,
            **dict.fromkeys(METRICS, 1.0),
            **more,
            "quality_yield": value,
        }
        for trace in traces
        for policy, values in yields.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


SUMMARY = a_summary({"pac": [0.8, 0.82], "argus": [0.9, 0.92], "<b>x</b>": [0.1, 0.2]}, traces=("day", "night"))


def written(path: Path, **changes: Any) -> str:
    summary = changes.pop("summary", SUMMARY)
    arguments: dict[str, Any] = {
        "title": "Bursts & <calm>",
        "lock": LOCK,
        "summary": summary,
        "aggregate": aggregate(summary),
        "provenance": [("latency", "measured", "our harness"), ("trace", "synthetic", "seed 7")],
        "stories": [make_story(trace, tuple(dict.fromkeys(summary["policy"]))) for trace in ("day", "night")],
        "facts": [("GPUs", "8"), ("profile", "<mine>")],
        "front": [(1.1, 0.84), (4.2, 0.985)],
        "notes": ["one run was <stopped>"],
    }
    write_report(path / "report.html", **{**arguments, **changes})
    return (path / "report.html").read_text("utf-8")


class Page(html.parser.HTMLParser):
    """Tags with attributes, and that they are closed in order."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_needs_nothing_else(tmp_path: Path) -> None:
    text = written(tmp_path)
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "img", "object"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.findall(r"(?:url\(|@import|fetch\(|https?:)(?!#)[^)]{0,20}", text.partition("<body>")[0])
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_only_our_script_may_run(tmp_path: Path) -> None:
    text = written(tmp_path)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_every_chart_is_there_without_scripts_and_says_what_it_shows(tmp_path: Path) -> None:
    page = Page(written(tmp_path))
    charts = [attributes for _, attributes in page.tags if attributes.get("aria-roledescription") == "chart"]
    policies, traces = SUMMARY["policy"].nunique(), SUMMARY["trace"].nunique()
    assert len(charts) == traces * (4 + 2 + 1 + 2 * policies)
    assert all(len(str(chart["aria-label"])) > 40 for chart in charts)
    lines = [attributes for tag, attributes in page.tags if tag == "path" and attributes.get("class") == "line"]
    assert len(lines) == traces * (4 + 1) * policies
    assert all(str(path["d"]).startswith("M") for path in lines)


def test_names_and_targets_exist(tmp_path: Path) -> None:
    page = Page(written(tmp_path))
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert (attributes.get("aria-labelledby") or ids[0]) in ids
        link = attributes.get("href") or f"#{ids[0]}"
        assert link[1:] in ids


def test_the_script_reads_what_the_charts_draw(tmp_path: Path) -> None:
    text = written(tmp_path)
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(found)
    drawn = {attributes["data-chart"] for _, attributes in Page(text).tags if "data-chart" in attributes}
    assert drawn == set(data["charts"])
    assert data["policies"] == ["pac", "argus", "<b>x</b>"]
    chart = data["charts"]["t0-quality_yield"]
    assert [len(values) for _, values in chart["series"]] == [len(data["groups"][0]["x"])] * 3


def test_what_users_write_is_text(tmp_path: Path) -> None:
    text = written(tmp_path)
    assert "<title>Bursts &amp; &lt;calm&gt;" in text
    assert "<b>x</b>" not in text
    assert "one run was &lt;stopped&gt;" in text


def test_same_results_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path / "a") == written(tmp_path / "b")


def test_badges_say_it_in_words(tmp_path: Path) -> None:
    text = written(tmp_path)
    for kind in ("measured", "synthetic"):
        assert f'<span class="badge {kind}">{kind}</span>' in text
    assert '<span class="badge published">' not in text
    with pytest.raises(ValueError, match="guessed"):
        written(tmp_path, provenance=[("latency", "guessed", "a hunch")])


def test_the_configuration_can_be_read_back(tmp_path: Path) -> None:
    found = re.search(r"<pre><code>(.*?)</code></pre>", written(tmp_path), re.DOTALL)
    assert found is not None
    assert yaml.safe_load(html.unescape(found[1])) == {**LOCK, "seeds": [0, 1], "profile": "profiles/a"}


def test_tables_rank_by_yield_and_mark_the_best(tmp_path: Path) -> None:
    day = written(tmp_path).partition(">day</h3>")[2].partition("</table>")[0]
    assert re.findall(r'<th scope="row">(.*?)</th>', day) == ["argus", "pac", "&lt;b&gt;x&lt;/b&gt;"]
    half = aggregate(SUMMARY)["quality_yield_half_width"].iloc[1]
    assert f'<td class="best">0.910<span class="pm"> ± {half:.3f}</span>' in day
    assert '<td class="best">0.810' not in day
    # All have the same throughput, so all are best; how many models they load is no merit.
    assert day.count('<td class="best">1.0<span class="pm"> ± 0.0</span>') == 3


def test_the_bound_is_not_a_policy(tmp_path: Path) -> None:
    summary = a_summary({"argus": [0.9], "pac": [0.8], "hindsight": [0.99]})
    text = written(tmp_path, summary=summary)
    assert '<td class="best">0.900<span class="mark"' in text
    assert '<td class="best">0.990' not in text
    assert "argus has the highest quality yield" in text
    assert "One seed, so no intervals." in text


def test_columns_that_were_not_computed_are_left_out(tmp_path: Path) -> None:
    assert "share of bound" in written(tmp_path).partition("<tbody>")[0]
    without = a_summary({"argus": [0.9]}, share_of_bound=NAN)
    assert "share of bound" not in written(tmp_path, summary=without).partition("<tbody>")[0]


def test_what_cannot_be_told_from_the_best_is_marked(tmp_path: Path) -> None:
    def row(policy: str, yields: dict[str, list[float]]) -> str:
        day = written(tmp_path, summary=a_summary(yields)).partition(">day</h3>")[2].partition("</table>")[0]
        cells = day.partition(f'<th scope="row">{policy}</th>')[2].partition("</tr>")[0]
        return cells.strip().partition("\n")[0]

    assert "≈" in row("a", {"a": [0.5, 0.7, 0.6], "b": [0.6, 0.65, 0.7]})
    assert "≈" not in row("a", {"a": [0.5, 0.55, 0.6], "b": [0.6, 0.65, 0.7]})
    assert "≈" not in row("a", {"a": [0.5], "b": [0.6]})


def test_nine_policies_over_two_long_traces_stay_small(tmp_path: Path) -> None:
    summary = a_summary({f"p{i}": [0.5] for i in range(9)}, traces=("day", "night"))
    assert len(written(tmp_path, summary=summary)) < 3_000_000


def test_many_runs_are_cut_short(tmp_path: Path) -> None:
    text = written(tmp_path, summary=a_summary({"argus": [0.5] * 301}))
    assert "The first 300 of 301 runs" in text


def test_the_least_there_can_be(tmp_path: Path) -> None:
    Page(written(tmp_path, stories=[], facts=[], provenance=[], notes=[], summary=a_summary({"argus": [NAN]})))


def test_a_terminal_of_eighty_characters_is_enough() -> None:
    policies = {f"clipper-h{i}": [0.9 - i / 100, 0.8 - i / 100, 0.7] for i in range(6)}
    table = terminal_table(aggregate(a_summary(policies, traces=("a-day-of-bursts",), latency_p99_s=12.34)))
    console = Console(width=80, record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    with console.file:
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert re.findall(r"clipper-h\d", text) == list(policies)
    assert "a-day-of-bursts" in text
    assert "±0.248" in text


def test_the_terminal_has_the_best_in_bold() -> None:
    table = terminal_table(aggregate(a_summary({"[red]pac": [0.8], "argus": [0.9]})))
    yields = list(table.columns[1].cells)
    assert [(str(cell), getattr(cell, "style", "")) for cell in yields] == [
        ("", ""),
        ("0.900", "bold"),
        ("0.800", ""),
    ]
    assert [str(cell) for cell in table.columns[0].cells] == ["day", "  argus", "  [red]pac"]


@pytest.mark.parametrize(
    ("yields", "sentence"),
    [
        ({"a": [0.5]}, "On day, a has a quality yield of 0.500."),
        (
            {"a": [0.5], "b": [0.6]},
            "On day, b has the highest quality yield, 0.600: 0.1000 more than a (one seed: no interval).",
        ),
        (
            {"a": [0.6], "b": [0.6]},
            "On day, a has the highest quality yield, 0.600, and b the same within 0.0001 "
            "(one seed: no interval).",
        ),
        (
            {"a": [0.2, 0.7], "b": [0.3, 0.8]},
            "On day, b has the highest quality yield, 0.550: 0.1000 ± 0.0000 more than a (paired over 2 seeds).",
        ),
        (
            {"a": [0.2, 0.7], "b": [0.6, 0.5]},
            "On day, b has the highest quality yield, 0.550, but a cannot be told from it: "
            "the difference is 0.1000 ± 3.8119 over 2 paired seeds.",
        ),
    ],
)
def test_findings_do_not_overclaim(yields: dict[str, list[float]], sentence: str) -> None:
    assert findings(a_summary(yields)) == [sentence]


def test_findings_without_a_common_seed() -> None:
    summary = a_summary({"a": [0.5], "b": [0.6]})
    summary["seed"] = [0, 1]
    assert findings(summary) == [
        "On day, b has the highest quality yield, 0.600; a is next, with no seed in common to compare by."
    ]
    assert findings(a_summary({"a": [NAN]})) == []


def test_findings_say_where_the_bound_says_nothing() -> None:
    summary = a_summary({"a": [0.5], "b": [0.6]}, traces=("day", "night"))
    summary["share_of_bound"] = summary["quality_yield"] / np.where(summary["trace"] == "day", 0.9995, 0.9)
    assert findings(summary)[2:] == [
        "On day, the bound is above 0.999: a share of it is the quality yield once more."
    ]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [child.name for child in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(("cases", "folded"), [(8, 0), (9, 3)])
def test_what_a_sweep_has_too_much_of_is_folded(tmp_path: Path, cases: int, folded: int) -> None:
    yields = {"pac": [0.8, 0.82], "argus": [0.9, 0.92], "<b>x</b>": [0.1, 0.2]}
    summary = a_summary(yields, traces=tuple(f"x={i}" for i in range(cases)))
    summary["share_of_bound"] = 0.9
    text = written(
        tmp_path, summary=summary, stories=[], axes=[make_axis("gpus", {"4": 4.0, "8": 8.0})], case="case"
    )
    Page(text)
    assert text.count("<summary>All ") == folded
    assert text.index('id="along"') < text.index('id="results"') < text.index('id="bound"')
    assert "POINT/experiment.lock.yaml" in text
