"""Traces and profiles that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.bad_input.changed import changed
from tests.make_experiment import write_experiment

TRACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "negative": ("arrival_s\n1\n-2\n3\n", ("bad.csv: line 3, column 'arrival_s'", "-2 is negative")),
    "unsorted": ("arrival_s\n1\n3\n2\n", ("bad.csv: line 4, column 'arrival_s'", "2 is earlier")),
    "NaN": ("arrival_s\n1\nnan\n", ("bad.csv: line 3, column 'arrival_s'", "nan is not a finite number")),
    "infinite": ("arrival_s\n1\ninf\n", ("bad.csv: line 3, column 'arrival_s'", "inf is not a finite number")),
    "text": ("arrival_s\n1\nsoon\n", ("bad.csv: line 3, column 'arrival_s'", "'soon' is not a number")),
    "empty": ("arrival_s\n", ("bad.csv: ", "has no arrivals")),
    "empty file": ("", ("bad.csv",)),
    "other column": ("arrivals\n1\n", ("bad.csv: ", "no column 'arrival_s'", "did you mean 'arrivals'?")),
    "ragged": ("arrival_s,prompt\n1,a\n2\n", ("bad.csv: line 3", "1 fields, the header has 2")),
}


@pytest.mark.parametrize("what", TRACES)
def test_trace(what: str, here: Path, complains: Callable[..., str]) -> None:
    text, says = TRACES[what]
    (here / "bad.csv").write_text(text)
    complains("validate", "bad.csv", says=says)
    complains("traces", "show", "bad.csv", says=says)
    write_experiment(here, changed(lambda e: e.update(traces=[{"name": "bad", "file": "bad.csv"}])))
    complains("run", "small.yaml", says=says)


def test_trace_file_that_is_not_there(here: Path, complains: Callable[..., str]) -> None:
    write_experiment(here, changed(lambda e: e.update(traces=[{"name": "bad", "file": "bad.csv"}])))
    complains("run", "small.yaml", says=(str(here / "bad.csv"), "no such file"))
    imported = {"name": "bad", "file": "bad.csv", "format": "csv"}
    write_experiment(here, changed(lambda e: e.update(traces=[imported])))
    complains("run", "small.yaml", says=(str(here / "bad.csv"), "no such file"))
    (here / "bad.txt").write_text("arrival_s\n1\n")
    complains("validate", "bad.txt", says=("bad.txt", "neither YAML nor a trace"))
    complains("traces", "stats", "bad.txt", says=("bad.txt: ", "not a trace file", ".csv, .parquet"))


def edit_table(folder: Path, table: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = folder / f"{table}.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)


PROFILES: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame], tuple[str, ...]]] = {
    "no batch size 1": (
        "latency",
        lambda t: t[(t["variant"] != "small") | (t["batch_size"] != 1)],
        ("table latency", "'small' has no row for batch size 1"),
    ),
    "no latency": ("latency", lambda t: t[t["variant"] != "small"], ("table latency", "'small'")),
    "no quality of a variant": (
        "quality",
        lambda t: t[t["variant"] != "small"],
        ("table quality", "no score of variant 'small'"),
    ),
    "no quality of a test prompt": (
        "quality",
        lambda t: t[(t["variant"] != "small") | (t["prompt"] != "p4")],
        ("profile 'test' has no quality of prompt 'p4' at 'small'",),
    ),
    "no quality of a training prompt": (
        "quality",
        lambda t: t[(t["variant"] != "big/ac-10") | (t["prompt"] != "p5")],
        ("profile 'test' has no quality of prompt 'p5' at 'big/ac-10'",),
    ),
    "no load time": (
        "loads",
        lambda t: t[t["model"] != "small"],
        ("table loads", "no load time of model 'small'"),
    ),
    "no load time from disk": (
        "loads",
        lambda t: t.assign(source=["host" if m == "small" else "disk" for m in t["model"]]),
        ("no load of 'small' from 'disk'", "it has host"),
    ),
    "negative latency": ("latency", lambda t: t.assign(mean_s=-t["mean_s"]), ("table latency", "mean_s")),
    "a column less": ("latency", lambda t: t.drop(columns="mean_s"), ("table latency", "mean_s")),
}


@pytest.mark.parametrize("what", PROFILES)
def test_profile(what: str, here: Path, complains: Callable[..., str]) -> None:
    table, change, says = PROFILES[what]
    edit_table(here / "profile", table, change)
    complains("run", "small.yaml", says=says)


def test_profile_without_a_table(here: Path, complains: Callable[..., str]) -> None:
    (here / "profile" / "loads.parquet").unlink()
    complains("run", "small.yaml", says=("table loads is missing",))
    complains("validate", "profile", says=("table loads is missing",))
    complains("profiles", "show", "profile", says=("table loads is missing",))


def test_profile_with_a_broken_manifest(here: Path, complains: Callable[..., str]) -> None:
    path = here / "profile" / "profile.json"
    path.write_text(path.read_text()[:-20])
    complains("run", "small.yaml", says=("profile.json",))
    path.write_text(json.dumps({"name": "x"}))
    complains("run", "small.yaml", says=("profile.json",))
