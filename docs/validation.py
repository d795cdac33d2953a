"""Run the analytic and golden tests and put what they found into validation.md: ``make validation``.

Live servers play against simulations as well, which takes some minutes and a machine without other work.
The table of rankings is made from ``runs/fitted`` where that is; its experiment needs the recorded data sets.
Kept live runs are shown from what ``argus-sim validate-live`` left in folders of ``runs/live``, if any.
The cache's log is replayed where the environment has ``ARGUS_DATA`` (the folder of the recorded data sets, with
the log as :data:`LOG`) and ``ARGUS_LOG_EMBEDDINGS`` (a file of ``argus-calibrate embed LOG --column Queries
--column Caches``); else its table stays as it is. Both are read first: what is missing is known before anything
takes long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from argus_sim.cli import main as main_of_argus_sim
from argus_sim.cli.tables import put_between_marks
from argus_sim.errors import InputError
from argus_sim.experiment.results import Results
from argus_sim.files import write_atomically
from argus_sim.metrics.intervals import agreement, ranking
from calibration.cache_log import THRESHOLDS, CacheLog, vectors_of
from calibration.cache_report import study

#: Text -> its vector.
Vectors = dict[str, npt.NDArray[np.float32]]

PAGE = Path(__file__).with_name("validation.md")
FITTED = PAGE.parent.parent / "runs" / "fitted"
#: What is played live and simulated: policy, what stands in the table, and where in the trace it begins.
LIVE = [
    ("static", "start of the trace", []),
    ("static", "at the peak", ["--from-s", "peak"]),
    ("argus", "start of the trace", []),
    ("argus", "at the peak, after 300 s of lead-in", ["--from-s", "peak", "--lead-in-s", "300"]),
]
#: Runs of ``argus-sim validate-live`` that were kept, a folder each.
PLAYED = PAGE.parent.parent / "runs" / "live"
#: The artefact's log below ``ARGUS_DATA``: its columns Scores, Queries and Caches.
LOG = Path("unclear_licence") / "argus_cache_retrieval_log_20k.csv"
TESTS = ["tests/analytic/test_queues.py", "tests/golden/test_artefact.py"]


def main() -> int:
    try:
        replayed = log_and_vectors()
    except InputError as error:
        print(f"error: {error}; validation.md is left as it was", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", *TESTS]
        command += [f"--junitxml={report}", "-o", "junit_family=xunit1"]
        done = subprocess.run(command, cwd=PAGE.parent.parent, env={**os.environ, "ARGUS_DATA": ""}, check=False)
        if done.returncode:
            print("the tests fail; validation.md is left as it was", file=sys.stderr)
            return 1
        text = PAGE.read_text("utf-8")
        tables = {"analytic": analytic(report), "artefact": artefact(report), "live": live(Path(folder))}
        if (FITTED / "summary.csv").is_file():
            tables["rankings"] = rankings(Results.load(FITTED).summary)
        if PLAYED.is_dir():
            files = sorted(PLAYED.glob("*/validation.json"))
            tables["fidelity"] = fidelity({f.parent.name: json.loads(f.read_text("utf-8")) for f in files})
        for name, table in tables.items():
            text = put_between_marks(text, name, table, where=str(PAGE))
        if replayed is not None:
            text = put_between_marks(text, "cache", cache(*replayed), where=str(PAGE))
        write_atomically(PAGE, text.encode("utf-8"))
    return 0


def found(report: Path, name: str) -> list[dict[str, Any]]:
    """What the tests told under a name, in their order."""
    properties = ElementTree.parse(report).iter("property")
    return [json.loads(p.attrib["value"]) for p in properties if p.attrib["name"] == name]


def analytic(report: Path) -> str:
    lines = ["", "| queue | closed form | simulated, 99 % interval |", "| --- | ---: | ---: |"]
    lines += [
        f"| {f['what']} | {f['exact']:.4f} | {f['mean']:.4f} ± {f['half']:.4f} |" for f in found(report, "figure")
    ]
    return "\n".join([*lines, ""])


def artefact(report: Path) -> str:
    names = {
        "effective_throughput_per_min": ("images on time per minute", 1.0, 0),
        "quality_relative_to_base": ("quality relative to base, %", 100.0, 1),
    }
    lines = ["", "| system, metric | artefact | here | difference |", "| --- | ---: | ---: | ---: |"]
    for f in found(report, "artefact"):
        policy, _, metric = f["what"].partition(": ")
        label, scale, digits = names[metric]
        pair = f"{scale * f['artefact']:.{digits}f} | {scale * f['here']:.{digits}f}"
        lines.append(f"| {policy}: {label} | {pair} | {100 * (f['here'] / f['artefact'] - 1):+.1f} % |")
    return "\n".join([*lines, ""])


def live(folder: Path) -> str:
    """Live servers with emulated workers beside simulations of the same requests."""
    lines = [
        "",
        "| policy | throughput | violations | mean latency | p99 latency | quality |",
        "| --- |" + " ---: |" * 5,
    ]
    for number, (policy, where, options) in enumerate(LIVE):
        out = folder / f"live-{number}"
        arguments = ["validate-live", "fig7", "--policy", policy, "--speed", "60", "--requests", "2000", *options]
        if main_of_argus_sim([*arguments, "--out", str(out), "--quiet"]):
            raise SystemExit(f"{policy}, {where}: validate-live failed; validation.md is left as it was")
        (run,) = json.loads((out / "validation.json").read_text("utf-8"))["runs"]
        cells = [
            f"{100 * run['metrics'][metric][kind] + 0.0:+.2f}{unit}"
            for metric, kind, unit in (
                ("effective_throughput_per_min", "error", " %"),
                ("slo_violation_ratio", "difference", ""),
                ("latency_mean_s", "error", " %"),
                ("latency_p99_s", "error", " %"),
                ("relative_quality", "error", " %"),
            )
        ]
        lines.append(f"| {policy}, {where} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def rankings(summary: pd.DataFrame) -> str:
    """The policies by quality yield on each trace and on the model fitted to it, best first."""
    lines = [
        "",
        "| trace | policies by quality yield, and under its fitted model | Kendall's tau "
        "| pairs told apart alike | swapped | not told apart |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for trace in summary["trace"].unique():
        model = f"{trace}-fit"
        if model in set(summary["trace"]):
            got = agreement(summary, trace, model)
            swapped = "; ".join(map(" and ".join, got.swapped)) or "0"
            order = f"{_order(summary, trace)}<br>{_order(summary, model)}"
            told = f"{got.same} of {got.pairs} | {swapped} | {len(got.undecided)}"
            lines.append(f"| {trace} | {order} | {got.tau:.2f} | {told} |")
    return "\n".join([*lines, ""])


def _order(summary: pd.DataFrame, trace: str) -> str:
    return ", ".join(f"{policy} {mean:.3f}" for policy, mean in ranking(summary, trace).items())


def fidelity(found: dict[str, dict[str, Any]]) -> str:
    """Live runs, by name, against their simulations; real workers with the machine's pace beside."""
    runs = [(name, one, run) for name, one in found.items() for run in one["runs"]]
    emulated = [(one, run) for _, one, run in runs if one["workers"].endswith("emulated")]
    real = [(name, one, run) for name, one, run in runs if "drift" in run]
    lines = [""]
    if emulated:
        lines += [
            "| emulated workers, policy | requests | throughput | violations | mean | p99 | quality "
            "| jitter alone: throughput | violations | mean | p99 |",
            "| --- | --- |" + " ---: |" * 9,
        ]
    for one, run in emulated:
        metrics, jitter = run["metrics"], run.get("jittered", {}).get("errors", {})
        names = ("effective_throughput_per_min", "slo_violation_ratio", "latency_mean_s", "latency_p99_s")
        cells = [_share(metrics[name]["error"]) for name in names]
        cells[1] += f" ({100 * metrics['slo_violation_ratio']['difference']:+.2f})"
        cells.append(_share(metrics["relative_quality"]["error"]))
        cells += [f"{_share(jitter[n]['low'])} to {_share(jitter[n]['high'])}" if jitter else "–" for n in names]
        due = ", `--due-times`" if one["times of arrival"].startswith("as requests say") else ""
        lines.append(
            f"| {one['workers']}: {one['policy']} | {one['requests']}{due} | " + " | ".join(cells) + " |"
        )
    if real:
        lines += [
            "",
            "| real workers | requests | worker before | and after, over the profile | batches over both | mean "
            "| p99 | with the run's own times: mean | p99 | score of the images |",
            "| --- |" + " ---: |" * 9,
        ]
    for name, _, run in real:
        drift, scored = run["drift"], run.get("scored")
        errors = (run["metrics"], drift["errors_with_times_of"]["the live run"])
        own, informed = ([of[f"latency_{which}_s"] for which in ("mean", "p99")] for of in errors)
        paces = ("before_over_profile", "after_over_profile", "during_over_both")
        cells = [
            _share(share) for share in [*(drift[p] for p in paces), *(row["error"] for row in own), *informed]
        ]
        cells.append(f"{_share(scored['error'])} ± {100 * scored['half_width']:.2f}" if scored else "–")
        kept = "" if drift["kept_pace"] else " \\*"
        lines.append(f"| `{name}`{kept} | {run['requests']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.2f} %"


def log_and_vectors() -> tuple[CacheLog, dict[str, Vectors]] | None:
    """The artefact's log, and embedding -> text -> vector; None where the environment does not name both.

    Raises:
        InputError: It says so, and one of them is not there or not what it should be.
    """
    data, embeddings = (os.environ.get(name) for name in ("ARGUS_DATA", "ARGUS_LOG_EMBEDDINGS"))
    if not (data and embeddings):
        return None
    log = CacheLog.read(Path(data) / LOG)
    return log, dict(vectors_of(log, embedding) for embedding in (embeddings, "hashed"))


def cache(log: CacheLog, vectors: dict[str, Vectors]) -> str:
    """The log of the artefact's cache beside simulated ones: depths in % of the queries, and hit ratios."""
    studies = [study(log, of, name, fit_rows=10_000, seeds=5) for name, of in vectors.items()]
    columns = ["0", *map(str, THRESHOLDS)]
    lines = ["", "| queries | cache | " + " | ".join(columns) + " | largest difference |"]
    lines += ["| --- | --- |" + " ---: |" * (len(columns) + 1)]
    for parts in zip(*(s.parts for s in studies), strict=True):
        what = {"all": "all 20,000", "fitted": "1 to 10,000 (fitted)", "held out": "10,001 to 20,000 (held out)"}
        rows = [("log", parts[0].recorded, "")]
        rows += [(s.embedding, p.simulated, f"{p.worst:.2f}") for s, p in zip(studies, parts, strict=True)]
        lines += [
            f"| {what[parts[0].name]} | {who} | " + " | ".join(f"{v:.2f}" for v in values) + f" | {worst} |"
            for who, values, worst in rows
        ]
    ratios = [("log", studies[0].recorded), *((s.embedding, s.simulated) for s in studies)]
    lines += ["", "| hit ratio of each 2,000 queries |" + " |" * 10, "| --- |" + " ---: |" * 10]
    lines += [f"| {who} | " + " | ".join(f"{v:.3f}" for v in values) + " |" for who, values in ratios]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
