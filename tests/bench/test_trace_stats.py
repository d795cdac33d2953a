"""How much memory ``argus-sim traces stats`` takes for 100 million arrivals. Run by `make bench`.

``extra_info`` has the peak resident set of the process in MB. The trace is a day and more of Poisson arrivals at
1,000/s, about 600 MB on disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from argus_sim.provenance import Provenance
from argus_sim.trace.file import Header, write_batches

ARRIVALS = 100_000_000
PER_S = 1000.0


def batches() -> Iterator[np.ndarray]:
    rng, last_s = np.random.default_rng(1), 0.0
    for _ in range(ARRIVALS // 1_000_000):
        times = last_s + np.cumsum(rng.exponential(1 / PER_S, 1_000_000))
        last_s = float(times[-1])
        yield times


def test_stats_of_100_million_arrivals(benchmark: Any, tmp_path: Path) -> None:
    path = tmp_path / "long.parquet"
    origin = Provenance(kind="synthetic", source="tests.bench")
    write_batches(path, batches(), lambda: Header(name="long", duration_s=101_000.0, provenance=(origin,)))
    # The peak of the program itself: that of the kernel's accounts is of whoever started it, too.
    program = (
        "import sys; from argus_sim.cli import main; code = main(sys.argv[1:]);"
        "sys.stderr.write(next(x for x in open('/proc/self/status') if x.startswith('VmHWM'))); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "traces", "stats", str(path), "--json"]
    run = benchmark.pedantic(subprocess.run, (command,), {"capture_output": True, "check": True}, rounds=1)
    found = json.loads(run.stdout)
    assert found["count"] == ARRIVALS
    peak_mb = int(run.stderr.split()[-2]) / 1024
    benchmark.extra_info["peak_mb"] = round(peak_mb)
    assert peak_mb < 1000
    path.unlink()
