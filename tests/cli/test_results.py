"""``argus-sim compare`` and ``argus-sim table``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from argus_sim.cli import main
from argus_sim.metrics.intervals import read_table


def write_summary(folder: Path, rows: dict[str, list[float]]) -> Path:
    """A summary of one trace with the quality yields of each policy's seeds."""
    folder.mkdir()
    lines = [
        f"{policy},t,{seed},{value}," for policy, values in rows.items() for seed, value in enumerate(values)
    ]
    (folder / "summary.csv").write_text(
        "policy,trace,seed,quality_yield,share_of_bound\n" + "\n".join(lines) + "\n"
    )
    return folder


def test_comparing_two_runs(tmp_path: Path, call: Callable[..., str], call_json: Any) -> None:
    a = write_summary(tmp_path / "a", {"p": [0.90, 0.70, 0.80], "q": [0.5, 0.6, 0.7], "only-a": [1.0]})
    b = write_summary(tmp_path / "b", {"p": [0.80, 0.61, 0.70], "q": [0.6, 0.5, 0.7]})
    p, q = call_json("compare", a, b)["rows"]
    assert (p["policy"], p["metric"], p["pairs"]) == ("p", "quality_yield", 3)
    assert p["difference"] == pytest.approx(0.29 / 3)
    assert p["significant"] is True
    assert q["difference"] == pytest.approx(0.0)
    assert q["significant"] is False
    said = call("compare", a, b)
    assert "p on t, pairs: 3" in said
    assert re.search(r"quality yield +0.800 +0.703 +0.097 ± 0.014 +\*", said)
    assert re.search(r"quality yield +0.600 +0.600 +0.000 ± 0.248 *$", said, re.MULTILINE)


@pytest.mark.parametrize("name", ["NA", "null", "None", "nan", "7"])
def test_names_that_look_like_nothing(tmp_path: Path, call_json: Any, name: str) -> None:
    run = write_summary(tmp_path / "a", {name: [0.90, 0.70, 0.80], "q": [0.80, 0.61, 0.70]})
    (row,) = call_json("compare", run, "--policies", name, "q")["rows"]
    assert row["policy"] == f"{name} - q"
    table = read_table(run / "summary.csv").assign(trace=name)
    table.to_csv(run / "summary.csv", index=False)
    assert read_table(run / "summary.csv")["trace"].tolist() == [name] * 6


def test_comparing_two_policies_of_a_run(tmp_path: Path, call: Callable[..., str], call_json: Any) -> None:
    run = write_summary(tmp_path / "a", {"p": [0.90, 0.70, 0.80], "q": [0.80, 0.61, 0.70]})
    (row,) = call_json("compare", run, "--policies", "p", "q")["rows"]
    assert (row["policy"], row["a"], row["pairs"]) == ("p - q", pytest.approx(0.8), 3)
    assert row["significant"] is True
    (row,) = call_json("compare", run / "summary.csv", "--policies", "q", "p", "--confidence", "0.9999")["rows"]
    assert row["difference"] == pytest.approx(-0.29 / 3)
    assert row["significant"] is False


def test_comparing_with_one_seed_says_that_there_is_no_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(write_summary(tmp_path / "a", {"p": [0.9], "q": [0.8]}))
    assert main(["compare", run, "--policies", "p", "q"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"0.100 *$", out, re.MULTILINE)
    assert err == "note: with one common seed there is no interval\n"


def test_comparing_says_what_is_not_in_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_summary(tmp_path / "a", {"p": [0.9, 0.7, 0.8, 0.8, 0.9], "q": [0.5], "r": [0.5]})
    b = write_summary(tmp_path / "b", {"p": [0.8, 0.6, 0.7], "q": [0.6]})
    assert main(["compare", str(a), str(b)]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert notes[:2] == [
        "note: 2 of 3 policies in common; only in A: r",
        "note: 3 of 5 seeds in common; only in A: 3, 4",
    ]
    assert main(["compare", str(b), str(b)]) == 0
    assert "in common;" not in capsys.readouterr().err


def test_comparing_chosen_metrics(finished: Path, call_json: Any) -> None:
    arguments = ("compare", finished / "out", "--policies", "static", "argus")
    assert "quality_yield" in [row["metric"] for row in call_json(*arguments)["rows"]]
    chosen = call_json(*arguments, "--metric", "late", "--metric", "latency_p90_s")["rows"]
    assert [row["metric"] for row in chosen] == ["late", "latency_p90_s"]


def test_comparing_rankings_on_two_traces(tmp_path: Path, call: Callable[..., str], call_json: Any) -> None:
    run = tmp_path / "a"
    run.mkdir()
    yields = {
        ("p", "t"): (0.90, 0.91),
        ("p", "u"): (0.40, 0.41),
        ("q", "t"): (0.50, 0.51),
        ("q", "u"): (0.80, 0.81),
    }
    rows = [f"{p},{t},{seed},{value}" for (p, t), of in yields.items() for seed, value in enumerate(of)]
    (run / "summary.csv").write_text("policy,trace,seed,quality_yield\n" + "\n".join(rows) + "\n")
    found = call_json("compare", run, "--traces", "t", "u")
    assert found["agreement"]["quality_yield"] == {
        "tau": -1.0,
        "pairs": 1,
        "same": 0,
        "swapped": [["p", "q"]],
        "undecided": [],
    }
    assert [list(of) for of in found["rankings"]["quality_yield"]] == [["p", "q"], ["q", "p"]]
    said = call("compare", run, "--traces", "t", "u")
    assert "quality_yield on u: q 0.805, p 0.405" in said
    assert "swapped: p is better than q on t, and worse on u" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--traces", "t", "v"), "no trace 'v'"),
        (("--traces", "t", "t", "--metric", "quality"), "no metric 'quality'; did you mean 'quality_yield'?"),
        (("--traces", "t", "t", "--policies", "p", "q"), "compare takes two runs, or one run and"),
        (("--metric", "quality"), "no metric 'quality' in both; did you mean 'quality_yield'?"),
        (("--policies", "p", "r"), "the run has no policy 'r'"),
    ],
)
def test_comparing_what_is_not_there(
    tmp_path: Path, arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(write_summary(tmp_path / "a", {"p": [0.9], "q": [0.8]}))
    both = arguments if {"--policies", "--traces"} & set(arguments) else (*arguments, "--policies", "p", "q")
    assert main(["compare", run, *both]) == 2
    assert says in capsys.readouterr().err


def test_comparing_a_summary_with_a_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_summary(tmp_path / "a", {"p": [0.9]})
    (run / "summary.csv").write_text("policy,trace,seed,late\np,t,1,0\np,t,1,0\n")
    assert main(["compare", str(run), str(run)]) == 2
    assert "has two rows for p t 1" in capsys.readouterr().err


def test_a_table_is_kept_up_to_date(finished: Path, tmp_path: Path, call: Callable[..., str]) -> None:
    printed = call("table", finished / "out")
    heading, rule, *rows = printed.splitlines()
    assert heading.startswith("| rush | quality yield | effective throughput (images/min) |")
    assert rule.count("---") == heading.count("|") - 1
    assert {row.split("|")[1].strip() for row in rows} == {"static", "argus"}
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- small table -->\nold\n<!-- end of small table -->\nafter\n")
    call("table", finished / "out", "--into", page, "--name", "small")
    once = page.read_text()
    assert once == f"before\n<!-- small table -->\n{printed}<!-- end of small table -->\nafter\n"
    call("table", finished / "out", "--into", page, "--name", "small")
    assert page.read_text() == once


def test_a_table_needs_its_place(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- small table --><!-- end of small table -->")
    assert main(["table", str(finished / "out"), "--into", str(page)]) == 2
    assert "has no place marked <!-- out table -->" in capsys.readouterr().err
    assert main(["table", str(finished / "out"), "--into", str(tmp_path / "nowhere.md")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["table", str(finished / "out"), "--name", "small"]) == 2
    assert "--name: is the NAME of a place in a document; say with --into" in capsys.readouterr().err
