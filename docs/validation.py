"""Run the analytic and golden tests and put what they found into validation.md: ``make validation``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from argus_sim.cli.tables import put_between_marks
from argus_sim.report import write_atomically

PAGE = Path(__file__).with_name("validation.md")
TESTS = ["tests/analytic/test_queues.py", "tests/golden/test_artefact.py"]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", *TESTS]
        command += [f"--junitxml={report}", "-o", "junit_family=xunit1"]
        done = subprocess.run(command, cwd=PAGE.parent.parent, env={**os.environ, "ARGUS_DATA": ""}, check=False)
        if done.returncode:
            print("the tests fail; validation.md is left as it was", file=sys.stderr)
            return 1
        text = PAGE.read_text("utf-8")
        for name, table in (("analytic", analytic(report)), ("artefact", artefact(report))):
            text = put_between_marks(text, name, table, where=str(PAGE))
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


if __name__ == "__main__":
    sys.exit(main())
