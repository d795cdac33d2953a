"""What the README and its companions say is so."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
import yaml

from argus_sim.cli import app, main
from argus_sim.experiment import Experiment, Peak, PolicyConfig, TraceConfig
from argus_sim.metrics import METRICS
from argus_sim.policies.registry import find
from calibration.cli import app as calibrate
from tests.make_experiment import write_experiment
from tests.run_docs import blocks

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
EXPERIMENTS = (ROOT / "experiments" / "README.md").read_text("utf-8")
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "experiments/README.md", "traces/README.md")]
#: All that says what to type.
SPOKEN = [*PAGES, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "calibration").rglob("README.md"))]


def block(text: str, language: str) -> str:
    """The only block of code in a language."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(code)


def test_the_policy_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step_down.py").write_text(block(README, "python"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (typed,) = re.findall(r"PYTHONPATH=\. argus-sim (run .*)", README)
    policies = next(word for word in shlex.split(typed) if word.startswith("policies="))
    out = tmp_path / "out"
    arguments = [
        "--set",
        policies,
        "--set",
        "traces.0.generate.rate_per_min=90",
        "--jobs",
        "1",
        "--out",
        str(out),
    ]
    assert main(["run", str(write_experiment(tmp_path)), *arguments, "--quiet"]) == 0
    assert set(pd.read_csv(out / "summary.csv")["policy"]) == {"argus", "StepDown"}
    outcomes = pd.read_parquet(out / "StepDown" / "rush" / "3" / "outcomes.parquet")
    used = set(outcomes["variant"].dropna())
    assert {"big", "big/ac-25"} <= used
    assert "small" not in used
    assert find("step_down:StepDown").name == "step-down"


def test_the_table_is_that_of_fig7() -> None:
    (table,) = re.findall(r"<!-- fig7 table -->\n(.*?)<!-- end of fig7 table -->", README, re.DOTALL)
    experiment = Experiment.load(ROOT / "experiments" / "fig7.yaml")
    rows = [
        line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|") and "---" not in line
    ]
    traces, policies = [t.name for t in experiment.traces], [p.label for p in experiment.policies]
    assert [row for row in rows if row in traces] == traces
    assert sorted(row for row in rows if row not in traces) == sorted(policies * len(traces))


def cells_of(trace: str, policy: str) -> dict[str, tuple[float, float, int]]:
    """Of a row of the README's table: heading -> mean, half-width, and how many digits it has."""
    lines = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("| ")]
    begin = next(i for i, cells in enumerate(lines) if cells[0] == trace)
    row = next(cells for cells in lines[begin:] if cells[0] == policy)
    found = {}
    for heading, cell in zip(lines[begin][1:], row[1:], strict=True):
        mean, half = cell.replace(",", "").split(" ± ")
        found[heading] = (float(mean), float(half), len(mean.partition(".")[2]))
    return found


@pytest.mark.slow
def test_one_seed_of_fig7_is_where_the_table_says(tmp_path: Path) -> None:
    """A seed's value is some half-widths of the mean's interval from the mean; not, what has changed since."""
    few = ["--set", "policies=[clipper-ht, argus]", "--set", "bound=false", "--seeds", "1", "--jobs", "1"]
    assert (
        main(["run", str(ROOT / "experiments" / "fig7.yaml"), *few, "--out", str(tmp_path / "out"), "--quiet"])
        == 0
    )
    for run in pd.read_csv(tmp_path / "out" / "summary.csv").to_dict("records"):
        said = cells_of(run["trace"], run["policy"])
        known = [
            metric for metric in METRICS.values() if metric.heading in said and metric.name != "share_of_bound"
        ]
        assert len(known) >= 8
        for metric in known:
            mean, half, digits = said[metric.heading]
            here = float(metric.text(run[metric.name]).replace(",", ""))
            assert abs(here - mean) <= 5 * half + 2 * 10**-digits, (
                f"{run['policy']}, {metric.heading}: make readme"
            )


def test_the_picture_is_small() -> None:
    (path,) = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert (ROOT / path).stat().st_size < 200_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)(.*?)\)", page.read_text("utf-8")):
        assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", SPOKEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_flags_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    typed = re.findall(r"^ *(?:\w+=\S+ )?argus-(sim|calibrate) ([^\n#]*)", text, re.MULTILINE)
    for program, line in typed + re.findall(r"`argus-(sim|calibrate) ([^`]*)`", text):
        command: Any = typer.main.get_command({"sim": app, "calibrate": calibrate}[program])
        words = line.split()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not (hasattr(command, "commands") and words and words[0][0].isalpha()), f"argus-sim {line}"
        flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        unknown = set(re.findall(r"(?<!\S)\[?(--[a-z-]+)", line)) - flags
        assert not unknown, f"argus-{program} {line}"
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:^    |`)make ([\w-]+)", text, re.MULTILINE)
    for block in blocks(text):
        targets += re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE) if block.language == "sh" else []
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for names in re.findall(r"argus-sim\[([\w,]+)\]", text):
        assert set(names.split(",")) <= set(extras), names


def test_the_explained_experiment_has_every_key_and_the_defaults() -> None:
    text = block(EXPERIMENTS, "yaml")
    data = yaml.safe_load(text)
    explained = Experiment.check(data, where="README")
    default = Experiment.check({key: data[key] for key in ("name", "profile", "traces", "policies")}, where="x")
    plain = default.model_dump()
    assert explained.model_dump() | {"slo": plain["slo"]} == plain
    assert explained.slo.of(4.0) == default.slo.of(4.0)
    traces = [trace for trace in data["traces"] if isinstance(trace, dict)]
    policies = [policy for policy in data["policies"] if isinstance(policy, dict)]
    assert set(data) == set(Experiment.model_fields)
    assert {key for trace in traces for key in trace} == set(TraceConfig.model_fields)
    assert {key for policy in policies for key in policy} == set(PolicyConfig.model_fields)
    assert {key for trace in traces for key in trace.get("peak", ())} == set(Peak.model_fields)
    for section in ("cluster", "slo"):
        assert set(plain[section]) <= set(data[section]) | {"seconds"}
    assert set(plain["cluster"]["cache"]) == set(data["cluster"]["cache"])


@pytest.mark.data
def test_real_data_to_the_same_report(data: Path, tmp_path: Path) -> None:
    """``experiments/real.yaml`` in small: an hour of each trace, one seed, the policies that differ most."""
    out = tmp_path / "real"
    clips = [
        ["--set", f"traces.{i}.clip_s=[{start}, {start + 3600}]"] for i, start in ((1, 36_000), (4, 864_000))
    ]
    less = [word for clip in clips for word in clip] + ["--set", "policies=[clipper-ha, argus]", "--seeds", "1"]
    path = ROOT / "experiments" / "real.yaml"
    assert main(["run", str(path), *less, "--out", str(out), "--jobs", "1", "--quiet"]) == 0
    experiment = Experiment.load(path)
    summary = pd.read_csv(out / "summary.csv")
    assert list(summary["trace"].unique()) == [trace.name for trace in experiment.traces]
    assert summary["relative_quality"].between(0.5, 1).all()
    assert (summary["arrived"] > 100).all()
    assert (out / "report.html").is_file()
    peak = json.loads((out / "argus" / "gateway-day" / "1" / "summary.json").read_text())["peak"]
    assert peak["offered_per_min"] > 60
