"""A load on a live server as a run like any other: what is asked, and what came of it.

The folder that is left has the files of a simulated run, so that one report, one
:class:`~argus_sim.experiment.results.Results` and one ``compare`` do for both. Requests arrive when they are due
and end when the client has its answer: latency is what a user would have waited.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from argus_sim import metrics
from argus_sim.core.policy import Policy, Setup
from argus_sim.domain import Outcome
from argus_sim.errors import InputError
from argus_sim.experiment import Experiment
from argus_sim.experiment.folder import digest_of, prepared
from argus_sim.experiment.lockfile import versions
from argus_sim.experiment.runner import Run, write_run
from argus_sim.files import write_atomically
from argus_sim.profile import Profile
from argus_sim.record import Ints, RunRecord
from argus_sim.report import write_report
from argus_sim.report.charts.story import tell
from argus_sim.trace import Trace
from argus_sim.workload import Workload, stream

if TYPE_CHECKING:
    from argus_sim.live.client import Answers

#: A warning is due where one request in a hundred was sent later than this part of its deadline.
LAG_OF_SLO = 0.01


class Measured(Policy):
    """Stands for whatever a measured server did. It cannot be simulated."""

    name = "measured"

    def __init__(self, setup: Setup, params: Any) -> None:
        raise InputError("these results were measured on a live server; there is no policy to simulate")


@dataclass(frozen=True)
class Asked:
    """The requests of a load, n long.

    Attributes:
        trace: When.
        prompt: int32[n], index into ``names``.
        texts: The distinct texts that are sent.
        names: What the record calls prompts; where ``text`` is None, those with these texts.
        slo_s: The deadline of each after it is due.
        profile: Where the prompts are from; None for prompts of the user's own.
        text: int32[n], index into ``texts``, where the profile's prompts only stand in for texts of a log.
    """

    trace: Trace
    prompt: Ints
    texts: tuple[str, ...]
    names: tuple[str, ...]
    slo_s: float
    profile: Profile | None = None
    text: Ints | None = None

    @property
    def sent(self) -> Ints:
        """int32[n], index into ``texts``."""
        return self.prompt if self.text is None else self.text

    @classmethod
    def of_profile(cls, trace: Trace, profile: Profile, slo_s: float, seed: int) -> Asked:
        """The prompts that a simulated run of this seed has."""
        workload = Workload.of(trace, profile, slo_s, stream(seed, "prompts"))
        return cls(trace, workload.prompt, profile.prompt_texts, profile.prompts, slo_s, profile)

    @classmethod
    def of_texts(cls, trace: Trace, texts: Sequence[str], slo_s: float, seed: int) -> Asked:
        """Prompts drawn from a list, uniformly."""
        distinct = tuple(dict.fromkeys(texts))
        prompt = stream(seed, "prompts").integers(0, len(distinct), size=len(trace)).astype(np.int32)
        return cls(trace, prompt, distinct, tuple(f"prompt-{i + 1}" for i in range(len(distinct))), slo_s)

    @classmethod
    def of_trace(cls, trace: Trace, slo_s: float) -> Asked:
        """The prompts that the trace itself has."""
        assert trace.prompt is not None
        distinct = {text: i for i, text in enumerate(dict.fromkeys(trace.prompt))}
        prompt = np.array([distinct[text] for text in trace.prompt], dtype=np.int32)
        return cls(trace, prompt, tuple(distinct), tuple(f"prompt-{i + 1}" for i in range(len(distinct))), slo_s)


def record_of(
    asked: Asked, answers: Answers, *, by: Literal["client", "server"] = "client", behind_s: float = 0.0
) -> RunRecord:
    """Answers as the record of a run; what was due after the load was stopped is left out.

    Args:
        by: Whose clock tells the time: ``client``, from due to read; or ``server``, from arrival to finish, for
            emulated workers, whose seconds are shorter than those of HTTP.
        behind_s: Real seconds by which the server runs late on purpose; they are taken off.
    """
    from argus_sim.live.client import FAILED, OPEN

    stopped_s, n = answers.stopped_s, answers.sent
    status, service_s = answers.status[:n], answers.service_s[:n]
    served = status == 200
    if by == "server":
        arrival_s = np.where(np.isfinite(answers.arrival_s[:n]), answers.arrival_s[:n], answers.due_s[:n])
        finish_s = np.where(served, answers.finish_s[:n], np.nan)
        start_s = finish_s - service_s
    else:
        arrival_s = answers.due_s[:n]
        finish_s = np.where(served, answers.received_s[:n] - behind_s * answers.speed, np.nan)
        start_s = answers.finish_s[:n] - service_s - _offset_s(answers)
        start_s = np.clip(start_s, arrival_s, finish_s)  # whatever the server's clock says
    # The server says microseconds.
    late = finish_s > arrival_s + asked.slo_s + 1e-5
    outcome = np.full(n, Outcome.LOST, dtype=np.int8)
    outcome[served] = np.where(late[served], Outcome.LATE, Outcome.ON_TIME)
    outcome[status == 429] = Outcome.REJECTED
    outcome[(status == OPEN) & np.isnan(answers.received_s[:n])] = Outcome.UNFINISHED
    outcome[status == FAILED] = Outcome.LOST
    profile = asked.profile
    known = [v.name for v in profile.variants] if profile else []
    variants = [*known, *(name for name in answers.variants if name not in known)]
    code_of = np.array([variants.index(name) for name in answers.variants] + [-1], dtype=np.int32)
    variant = np.where(served, code_of[answers.variant[:n]], -1).astype(np.int32)
    quality = np.where(served, answers.quality[:n], np.nan)
    to_base = np.full(n, np.nan)
    if profile is not None:
        rows = served & (variant >= 0) & (variant < len(known))
        at = asked.prompt[:n][rows], variant[rows]
        quality[rows] = profile.relative_quality()[at]
        to_base[rows] = profile.quality_relative_to_base()[at]
    worker = np.where(served, answers.worker[:n], -1).astype(np.int32)
    size = np.where(served, answers.batch_size[:n], 0).astype(np.int32)
    return RunRecord(
        variants=tuple(variants),
        prompts=asked.names,
        reasons=tuple(answers.reasons),
        arrival_s=arrival_s,
        start_s=np.where(served, start_s, np.nan),
        finish_s=finish_s,
        deadline_s=arrival_s + asked.slo_s,
        prompt=asked.prompt[:n],
        variant=variant,
        worker=worker,
        batch_size=size,
        outcome=outcome,
        reason=answers.reason[:n],
        relative_quality=quality,
        quality_relative_to_base=to_base,
        duration_s=asked.trace.duration_s if stopped_s is None else min(stopped_s, asked.trace.duration_s),
        workers=max(int(worker.max(initial=-1)) + 1, answers.workers_up),
        busy_s=float(np.nansum(service_s[served] / np.maximum(size[served], 1))),
    )


def _offset_s(answers: Answers) -> float:
    """What the server's clock said at the trace's start, at the most: nothing arrives before it is sent."""
    ahead = answers.arrival_s - answers.sent_s
    return float(np.nanmin(ahead)) if np.isfinite(ahead).any() else 0.0


def lag_warning(asked: Asked, answers: Answers) -> str | None:
    """What to say where the generator itself was late, so that the load was not what the trace says."""
    lag_s = answers.lag_s
    if not len(lag_s):
        return None
    p99_s = float(np.quantile(lag_s, 0.99))
    if p99_s * answers.speed <= LAG_OF_SLO * asked.slo_s:
        return None
    return (
        f"the generator lagged: one request in a hundred was sent {1e3 * p99_s:.3g} ms late or more "
        f"({p99_s * answers.speed:.3g} s of the trace); a lower --speed or a machine of its own would help"
    )


def http_table(answers: Answers, n: int) -> pd.DataFrame:
    """``http.parquet``: what the client saw of each request. Seconds of the trace, but for ``lag_s``."""
    return pd.DataFrame(
        {
            "request": np.arange(n, dtype=np.int32),
            "due_s": answers.due_s[:n],
            "sent_s": answers.sent_s[:n],
            "received_s": answers.received_s[:n],
            "lag_s": (answers.sent_s[:n] - answers.due_s[:n]) / answers.speed,
            "status": answers.status[:n],
            "bytes": answers.bytes[:n],
            "server_arrival_s": answers.arrival_s[:n],
            "server_finish_s": answers.finish_s[:n],
        }
    )


@dataclass(frozen=True)
class Told:
    """How a load is described.

    Attributes:
        label: What results call the server's policy.
        experiment: Profile, trace and deadline as an experiment has them; its policies do not count.
        url: Who was asked.
    """

    label: str
    experiment: Experiment
    url: str


def conclude(told: Told, asked: Asked, answers: Answers, out: Path) -> dict[str, Any]:
    """Write the folder of a load: a run, ``summary.csv``, ``report.html`` and a lock file. Returns the summary.

    Raises:
        InputError: The folder holds something else.
    """
    record = record_of(asked, answers)
    if not len(record):
        raise InputError("stopped before the first request; nothing was written")
    experiment = measured(told.experiment, told.label)
    lock = {"experiment": experiment.model_dump(mode="json"), "inputs": {}, "versions": versions()}
    run = Run(experiment.policies[0], experiment.traces[0], experiment.seed)
    with prepared(out, lock, resume=False):
        summary = write_run(
            record,
            run,
            out,
            lock=digest_of(lock),
            window_s=experiment.window_s,
            tables={"http": http_table(answers, len(record))},
        )
        table = pd.DataFrame([{k: v for k, v in summary.items() if k != "peak"}])
        write_atomically(out / "summary.csv", table.to_csv(index=False).encode())
        folder = run.folder(out)
        story = tell(
            run.trace.name,
            {told.label: [pd.read_parquet(folder / "timeline.parquet")]},
            {told.label: pd.read_parquet(folder / "outcomes.parquet")},
            {told.label: pd.read_parquet(folder / "attempts.parquet")},
            {told.label: record.events()},
        )
        warning = lag_warning(asked, answers)
        write_report(
            out / "report.html",
            title=f"{told.label}, measured",
            lock=lock,
            summary=table,
            aggregate=metrics.aggregate(table),
            provenance=provenance_rows(told, asked, said=bool(np.isfinite(answers.quality).any())),
            stories=[story],
            facts=facts(told, asked, answers),
            notes=[warning[0].upper() + warning[1:] + "."] if warning else [],
        )
    return summary


def measured(experiment: Experiment, label: str) -> Experiment:
    """The experiment with what was measured in the place of its policies."""
    data = experiment.model_dump(mode="json", exclude={"sweep"})
    data |= {"replications": 1, "bound": False, "policies": [{"name": f"{__name__}:Measured", "label": label}]}
    return Experiment.check(data, where="load")


def provenance_rows(told: Told, asked: Asked, *, said: bool) -> list[tuple[str, str, str]]:
    """What the numbers rest on: (what, kind, source)."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    source = f"argus-sim {version('argus-sim')} load, open loop, against {told.url}, {today}"
    rows = [("times and outcomes", "measured", source)]
    for part in asked.trace.provenance:
        changes = "".join(f"; {change}" for change in asked.trace.transformations)
        rows.append((f"trace {asked.trace.name}", part.kind, part.source + changes))
    if asked.profile is not None:
        rows += [("quality of images", part.kind, part.source) for part in asked.profile.provenance_of("quality")]
    elif said:
        rows.append(
            ("quality of images", "synthetic", "as the server said; what its profile rests on is not known")
        )
    return rows


def facts(told: Told, asked: Asked, answers: Answers) -> list[tuple[str, str]]:
    """What was done, in a few words each."""
    sent = answers.lag_s
    lag = "" if not len(sent) else f"{1e3 * np.median(sent):.3g} / {1e3 * np.quantile(sent, 0.99):.3g} ms"
    return [
        ("server", told.url),
        ("speed", f"{answers.speed:g} s of the trace in a second"),
        ("deadline after due", f"{asked.slo_s:.3g} s"),
        ("sent after due, median / p99", lag),
        ("made with", f"argus-sim {version('argus-sim')}"),
    ]


def arrivals_from(trace: Trace, from_s: float, requests: int | None) -> tuple[Trace, float]:
    """The next ``requests`` arrivals of a trace from a time on, the first of them at 0; and when that was.

    Raises:
        InputError: Nothing arrives from then on.
    """
    first = first_from(trace, from_s)
    last = len(trace) if requests is None else min(first + requests, len(trace))
    begin_s = float(trace.arrival_s[first])
    end_s = float(trace.arrival_s[last]) if last < len(trace) else trace.duration_s
    if begin_s == 0.0 and end_s == trace.duration_s:
        return trace, begin_s
    if end_s <= begin_s:  # all at the same time
        end_s = float(np.nextafter(begin_s, np.inf))
    return trace.clip(begin_s, end_s), begin_s


def first_from(trace: Trace, from_s: float) -> int:
    """The row of the first arrival from a time on; :class:`InputError` where there is none."""
    first = int(np.searchsorted(trace.arrival_s, from_s))
    if first >= len(trace):
        raise InputError(
            f"nothing arrives after {from_s:g} s; the last arrival is at {trace.arrival_s[-1]:g} s",
            where="--from-s",
        )
    return first
