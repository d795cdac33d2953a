"""The same requests, live and simulated: a server in a process of its own, a client here, and the simulator.

Needs the ``live`` extra.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from argus_sim.errors import InputError
from argus_sim.experiment import PolicyConfig, TraceConfig
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import simulate
from argus_sim.fidelity import Twin, counted
from argus_sim.live import drift
from argus_sim.live.client import Answers, Target
from argus_sim.live.wire import body
from argus_sim.load import Asked, arrivals_from, first_from, record_of
from argus_sim.record import Floats, RunRecord
from argus_sim.trace import Trace
from argus_sim.workload import Workload, stream

if TYPE_CHECKING:
    from argus_sim.live.scoring import Scored

#: How long a server may take to end, real seconds, and for each cell that it is to time then.
_END_S, _END_OF_CELL_S = 60.0, 60.0
#: Connections that are opened before the first request.
CONNECTIONS = 64
#: Our own server keeps idle connections for longer than this.
_KEEPALIVE_S = 60.0


@dataclass(frozen=True)
class Plan:
    """What is played.

    Attributes:
        from_s: Where in the trace the counted requests begin; None for the ``requests`` that come the fastest.
        requests: How many are counted.
        lead_in_s: So many seconds of the trace before them are played as well, and not counted.
        speed: Seconds of the trace in a real one.
        due_times: The server takes the times of arrival from a header, and runs so many real seconds late.
        emulated: Whether workers are; else only a speed of 1 makes sense.
        ready_s: How long the server may take to start, real seconds.
        jittered: So many simulations have arrivals as late as the live ones, but other ones.
        timed: Real workers: time the variants on the workers before and after, and simulate with that.
        scored: Real workers: rate so many of the images.
        scorer: By this; needed where any are.
    """

    requests: int
    from_s: float | None = 0.0
    lead_in_s: float = 0.0
    speed: float = 1.0
    due_times: float | None = None
    emulated: bool = True
    ready_s: float = 600.0
    jittered: int = 0
    timed: bool = False
    scored: int = 0
    scorer: str = ""

    def cut(self, trace: Trace) -> tuple[Trace, int]:
        """The trace to play, and how many of its requests come before those that count.

        Raises:
            InputError: Nothing arrives there, or the trace has not so much before it.
        """
        n = min(self.requests, len(trace))
        from_s = self.from_s
        if from_s is None:
            spans = trace.arrival_s[n - 1 :] - trace.arrival_s[: len(trace) - n + 1]
            from_s = float(trace.arrival_s[int(np.argmin(spans))])
        first = first_from(trace, from_s)
        if self.lead_in_s > from_s:
            raise InputError(
                f"the trace has but {from_s:g} s before the requests that count, found {self.lead_in_s:g}",
                where="--lead-in-s",
            )
        begin = int(np.searchsorted(trace.arrival_s, from_s - self.lead_in_s))
        n = min(n, len(trace) - first)
        played, _ = arrivals_from(trace, from_s - self.lead_in_s, first - begin + n)
        return played, first - begin


class Send(Protocol):
    """Plays requests against a target; images are given to ``on_image`` with their row."""

    def __call__(
        self, target: Target, asked: Asked, bodies: list[bytes], on_image: Callable[[int, bytes], None] | None
    ) -> Answers: ...


def twin_of(
    scene: Scene,
    policy: PolicyConfig,
    config: TraceConfig,
    seed: int,
    plan: Plan,
    serve: Sequence[str],
    send: Send,
) -> tuple[Twin, Answers]:
    """Play the requests of one seed against a fresh server, and simulate them.

    Args:
        serve: Arguments of ``argus-sim serve``: the experiment and what else it needs.

    Raises:
        InputError: The server does not start, or the load was stopped.
    """
    trace, first = plan.cut(scene.trace(config, seed))
    workload = scene.workload(trace, seed)
    asked = asked_of(scene, trace, workload)
    simulated = simulate(scene, policy, trace, seed, workload=workload, judge=False)
    arguments = [*serve, "--policy", policy.label, "--seed", str(seed), "--speed", str(plan.speed), "--hold"]
    if plan.due_times is not None:
        arguments += ["--due-times", str(plan.due_times)]
    images: dict[int, bytes] = {}
    wanted = _sample(len(trace), first, plan.scored, seed)
    cells = drift.cells_of(simulated, scene.profile) if plan.timed else []
    with tempfile.TemporaryDirectory() as folder:
        timings = Path(folder) / "timings.json"
        if plan.timed:
            arguments += ["--timings", str(timings)]
            arguments += [word for variant, size in cells for word in ("--time", f"{variant}@{size}")]
        end_s = _END_S + _END_OF_CELL_S * len(cells)
        with server(arguments, ready_s=plan.ready_s, end_s=end_s) as (url, _):
            target = Target(
                url,
                os.environ.get("ARGUS_API_KEY") or None,
                keepalive_s=_KEEPALIVE_S,
                due_times=plan.due_times is not None,
                began=True,
            )

            def keep(row: int, image: bytes) -> None:
                if row in wanted:
                    images[row] = image

            fields = {"response_format": "b64_json"} if wanted else None
            bodies = [body(text, fields) for text in asked.texts]
            answers = send(target, asked, bodies, keep if wanted else None)
        if answers.stopped_s is not None:
            raise KeyboardInterrupt
        if plan.timed and not timings.exists():
            raise InputError("a worker was down after the load, so that it could not be timed")
        told = json.loads(timings.read_text("utf-8")) if plan.timed else None
    at_client = record_of(asked, answers, behind_s=plan.due_times or 0.0)
    by_server = plan.emulated and (plan.speed != 1 or plan.due_times is not None)
    live = record_of(asked, answers, by="server") if by_server else at_client
    begin_s = float(trace.arrival_s[first])

    def part(record: RunRecord) -> RunRecord:
        return counted(record, first, begin_s)

    at_client_part = part(at_client)
    twin = Twin(
        seed,
        part(simulated),
        part(live) if by_server else at_client_part,
        at_client_part,
        http_costs(answers, first, plan.due_times or 0.0),
    )
    if plan.jittered:
        arrival_s = np.where(np.isfinite(answers.arrival_s), answers.arrival_s, trace.arrival_s)
        records = _at_times(scene, policy, trace, workload, seed, arrival_s, plan.jittered)
        twin = replace(twin, at_arrivals=part(next(records)), jittered=tuple(map(part, records)))
    if told is not None:
        twin = replace(twin, drift=_drift(scene, policy, trace, seed, told, at_client, answers, part, first))
    if wanted:
        twin = replace(twin, scored=_scored(images, asked, at_client, plan.scorer))
    return twin, answers


def asked_of(scene: Scene, trace: Trace, workload: Workload) -> Asked:
    """What a client sends where the simulator has this workload."""
    texts, names = workload.texts or scene.profile.prompt_texts, scene.profile.prompts
    return Asked(trace, workload.prompt, texts, names, scene.slo_s, scene.profile, workload.text)


def _sample(n: int, first: int, count: int, seed: int) -> frozenset[int]:
    """So many rows of those that count."""
    rows = np.arange(first, n)
    return frozenset(stream(seed, "scored").choice(rows, min(count, len(rows)), replace=False).tolist())


def _at_times(
    scene: Scene,
    policy: PolicyConfig,
    trace: Trace,
    workload: Workload,
    seed: int,
    arrival_s: Floats,
    copies: int,
) -> Iterator[RunRecord]:
    """The simulation at a live run's very times of arrival; then with its delays moved along.

    They keep their order, from a random one on: where a server or a client stalls, many in a row are late.
    """
    late_s, rng = arrival_s - trace.arrival_s, stream(seed, "jitter")
    drawn = (trace.arrival_s + np.roll(late_s, rng.integers(len(late_s))) for _ in range(copies))
    for times in (arrival_s, *drawn):
        order = np.argsort(times, kind="stable")
        at_s = times[order]
        moved = replace(
            workload,
            arrival_s=at_s,
            deadline_s=at_s + scene.slo_s,
            prompt=workload.prompt[order],
            text=None if workload.text is None else workload.text[order],
        )
        yield simulate(scene, policy, trace, seed, workload=moved, judge=False)


def _drift(
    scene: Scene,
    policy: PolicyConfig,
    trace: Trace,
    seed: int,
    told: dict[str, list[dict[str, Any]]],
    live: RunRecord,
    answers: Answers,
    part: Callable[[RunRecord], RunRecord],
    first: int,
) -> drift.Drift:
    """What the workers' own times say, and the simulations with them."""
    before, after = (
        {(row["variant"], row["batch_size"], row["idle_s"]): row["seconds"] for row in told[when]}
        for when in ("before", "after")
    )
    during = drift.batches_of(live, answers, scene.profile, slice(first, None))
    by_whose = {
        "before": before, "after": after, "before and after": drift.pooled(before, after), "the live run": during
    }  # fmt: skip
    if first:  # a profile of the very server, measured just before the requests that count
        by_whose["the lead-in"] = drift.batches_of(live, answers, scene.profile, slice(first))
    simulated = {
        whose: part(
            simulate(scene, policy, trace, seed, hardware=drift.at_pace(scene.profile, times), judge=False)
        )
        for whose, times in by_whose.items()
    }
    return drift.Drift(drift.paces(scene.profile, before, during, after), simulated)


def _scored(images: dict[int, bytes], asked: Asked, live: RunRecord, scorer: str) -> Scored:
    from argus_sim.live.scoring import score

    assert asked.profile is not None
    texts = {row: asked.texts[asked.sent[row]] for row in images}
    return score(images, texts, live, asked.profile, scorer)


def http_costs(answers: Answers, first: int = 0, behind_s: float = 0.0) -> dict[str, float]:
    """What stands between a request that is due and its image that is there, in real seconds.

    ``send_lag``: due to sent, at the client. ``round_trip``: what the client waited beyond what the server's
    own clock counts: HTTP both ways, and timers, less ``behind_s``. ``arrival_lag``: due to arrived, by the
    server's clock.
    """
    speed = answers.speed
    served = answers.status == 200
    waited_s = (answers.received_s - answers.sent_s) - (answers.finish_s - answers.arrival_s)
    parts = {
        "send_lag": (answers.sent_s - answers.due_s) / speed,
        "round_trip": np.where(served, waited_s / speed - behind_s, np.nan),
        "arrival_lag": (answers.arrival_s - answers.due_s) / speed,
    }
    costs = {}
    for name, values in parts.items():
        for words, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            costs[f"{name}_{words}_s"] = _quantile(values[first:], share)
    return costs


def _quantile(values: Floats, share: float) -> float:
    known = values[np.isfinite(values)]
    return float(np.quantile(known, share)) if len(known) else math.nan


# -- the server --------------------------------------------------------------------------------------------


#: The server's process. Its stdin ends with ours, however that ends; so does it.
_PROGRAM = """
import os, signal, sys, threading
from argus_sim.cli import main

def end() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end, daemon=True).start()
sys.exit(main(sys.argv[1:]))
"""


@contextlib.contextmanager
def server(arguments: Sequence[str], *, ready_s: float, end_s: float = _END_S) -> Iterator[tuple[str, int]]:
    """``argus-sim serve`` in a process of its own, on a free port; its address, and the process.

    Raises:
        InputError: It does not start; with what it said.
    """
    command = [sys.executable, "-c", _PROGRAM, "serve", *arguments, "--port", "0", "--quiet"]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as said:
        # A session of its own: Ctrl-C is for us, who then end it.
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, start_new_session=True)
        try:
            yield _address(process, ready_s, said), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(end_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for end in (process.stdin, process.stdout):
                if end is not None:
                    end.close()


def _address(process: subprocess.Popen[bytes], ready_s: float, said: IO[bytes]) -> str:
    assert process.stdout is not None
    ends_s = time.monotonic() + ready_s
    line = b""
    while not line.endswith(b"\n"):
        left_s = ends_s - time.monotonic()
        if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
            raise InputError(f"the server was not ready within {ready_s:g} s")
        part = os.read(process.stdout.fileno(), 4096)
        if not part:
            raise InputError(f"the server did not start: {_last_words(said)}")
        line += part
    return line.decode().split()[-1]


def _last_words(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"
