"""The report needs nothing but itself, says where its numbers come from, and comes out the same every time."""

from __future__ import annotations

import html
import html.parser
import math
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console

from argus_sim.metrics import METRICS, aggregate
from argus_sim.report import findings, terminal_table, write_atomically, write_report

NAN = math.nan
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"></svg>'
PNG = b"\x89PNG\r\n\x1a\n not really"
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
        "figures": [("Policies over time. All of them.", SVG), ("Totals.", PNG)],
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
    page = Page(written(tmp_path))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            address = attributes.get(name) or "#"
            assert address.startswith(("data:image/", "#")), address
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == ["Policies over time. All of them.", "Totals."]
    assert [str(image["src"]).partition(";")[0] for image in images] == ["data:image/svg+xml", "data:image/png"]
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for _, attributes in page.tags:
        assert (attributes.get("aria-labelledby") or next(iter(targets))) in targets
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


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
    assert f'<td class="best">0.910 ± {half:.3f}</td>' in day
    assert '<td class="best">0.810' not in day
    # All have the same throughput, so all are best; how many models they load is no merit.
    assert day.count('<td class="best">1.0 ± 0.0</td>') == 3


def test_the_bound_is_not_a_policy(tmp_path: Path) -> None:
    summary = a_summary({"argus": [0.9], "pac": [0.8], "hindsight": [0.99]})
    text = written(tmp_path, summary=summary)
    assert '<td class="best">0.900</td>' in text
    assert '<td class="best">0.990</td>' not in text
    assert "argus has the highest quality yield" in text
    assert "One seed, so no intervals." in text


def test_columns_that_were_not_computed_are_left_out(tmp_path: Path) -> None:
    assert "share of bound" in written(tmp_path).partition("<tbody>")[0]
    without = a_summary({"argus": [0.9]}, share_of_bound=NAN)
    assert "share of bound" not in written(tmp_path, summary=without).partition("<tbody>")[0]


def test_it_stays_small(tmp_path: Path) -> None:
    big = PNG + bytes(1_500_000)
    text = written(tmp_path, figures=[("One.", big), ("Two.", big), ("Three.", SVG)])
    assert len(text) < 3_000_000
    assert [attributes["alt"] for tag, attributes in Page(text).tags if tag == "img"] == ["One.", "Three."]
    assert "<li>Two.</li>" in text


def test_many_runs_are_cut_short(tmp_path: Path) -> None:
    text = written(tmp_path, summary=a_summary({"argus": [0.5] * 301}))
    assert "The first 300 of 301 runs" in text


def test_the_least_there_can_be(tmp_path: Path) -> None:
    Page(written(tmp_path, figures=[], provenance=[], notes=[], summary=a_summary({"argus": [NAN]})))


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
