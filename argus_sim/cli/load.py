"""``argus-sim load``: play a trace against a server, whatever server it is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argus_sim.cli import output
from argus_sim.errors import InputError

if TYPE_CHECKING:
    from argus_sim.experiment import Experiment
    from argus_sim.live.client import Answers, Target
    from argus_sim.load import Asked
    from argus_sim.trace import Trace

app = typer.Typer()


@app.command(
    epilog=output.examples(
        "argus-sim load bursty --url http://127.0.0.1:8000 --profile artefact-a100 --policy-label argus",
        "argus-sim load day.csv --url https://images.example --prompts prompts.txt --slo-s 20 --field model=sdxl",
    )
)
def load(
    trace: Annotated[
        str,
        typer.Argument(
            metavar="TRACE",
            help="A shipped trace or model, or a .csv, .parquet or .yaml file.",
            autocompletion=output.complete_traces,
        ),
    ],
    url: Annotated[str, typer.Option(metavar="URL", help="Of the server, without /v1.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("runs/load"),
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="Ask for this profile's test prompts, as a simulated run of the same seed would. With --prompts "
            "it gives the deadline alone.",
            autocompletion=output.complete_profiles,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ask for these prompts, one a line. Default: the trace's own."),
    ] = None,
    speed: Annotated[float, typer.Option(help="Seconds of the trace in a real one; as the server's.")] = 1.0,
    slo_s: Annotated[
        float | None,
        typer.Option(metavar="S", help="Deadline after due; by default 3 times the profile's base latency."),
    ] = None,
    from_s: Annotated[float, typer.Option(metavar="S", min=0, help="Begin here in the trace.")] = 0.0,
    requests: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only so many requests.")] = None,
    policy_label: Annotated[
        str, typer.Option(metavar="LABEL", help="What results call the server's policy.")
    ] = "measured",
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts, and of arrivals that are generated.")] = 1,
    timeout_s: Annotated[
        float, typer.Option(metavar="S", help="Real seconds after which an answer is given up.")
    ] = 300.0,
    max_open: Annotated[
        int, typer.Option(metavar="N", min=1, help="While so many are open, what falls due is not sent: lost.")
    ] = 10_000,
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Send this in each body, e.g. model=sdxl; repeatable."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the images here, by the number of their request: 000000.png, ..."),
    ] = None,
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Play a trace against a server of the OpenAI images API, and write what came of it.

    Each request is sent when it is due, whatever the server does, and its latency counts from then. The results
    are those of a run: outcomes, report.html, and all that Results and compare read. Ctrl-C writes what is there.
    ARGUS_API_KEY is sent as the API key.
    """
    from argus_sim import load as loads
    from argus_sim.experiment.folder import check_out

    try:
        from argus_sim.live.client import Target
        from argus_sim.live.wire import body
    except ImportError as error:
        raise extra_missing(error) from None
    for name, value in (("--speed", speed), ("--timeout-s", timeout_s), ("--slo-s", slo_s)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"must be above 0, found {value}", where=name)
    url = sound_url(url)
    check_out(out)
    if profile is not None and prompts is not None and slo_s is not None:
        raise InputError(
            "has nothing left to say: --prompts has the prompts, --slo-s the deadline", where="--profile"
        )
    if images is not None and images.resolve().is_relative_to(out.resolve()):
        raise InputError(f"must not be in {out}, where the results go", where=f"--images {images}")
    asked, experiment = _asked(trace, profile, prompts, slo_s, from_s, requests, seed)
    experiment = loads.measured(experiment, policy_label)  # a bad label is found before anything is sent
    fields = _fields(field or [])
    if images is not None and fields.setdefault("response_format", "b64_json") != "b64_json":
        raise InputError("--images keeps what is in the answers: b64_json", where="--field response_format")
    keep = None if images is None else keep_in(images)
    target = Target(url, os.environ.get("ARGUS_API_KEY") or None, timeout_s, max_open)
    bodies = [body(text, fields) for text in asked.texts]
    answers = send(target, asked, bodies, speed=speed, on_image=keep, quiet=quiet)
    told = loads.Told(policy_label, experiment, re.sub(r"//[^/@]*@", "//", url))  # without a password
    summary = loads.conclude(told, asked, answers, out)
    warning = loads.lag_warning(asked, answers)
    if warning:
        output.remark(f"warning: {warning}")
    _say(out, summary, answers, loads.facts(told, asked, answers), as_json=as_json)
    if images is not None:
        output.remark(f"{len(list(images.glob('*.png'))):,} images are in {images}", quiet=quiet)
    if answers.stopped_s is not None:
        output.remark(
            f"interrupted at {answers.stopped_s:.0f} s of the trace; what was sent until then is written"
        )
        raise typer.Exit(130)


def keep_in(folder: Path) -> Callable[[int, bytes], None]:
    """Writes images into an empty folder, each under the number of its request.

    Raises:
        InputError: It is no empty folder.
    """
    from argus_sim.files import write_atomically

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("is not an empty folder", where=f"--images {folder}")
    folder.mkdir(parents=True, exist_ok=True)

    def keep(row: int, image: bytes) -> None:
        write_atomically(folder / f"{row:06d}.png", image)

    return keep


def extra_missing(error: ImportError) -> InputError:
    """What to say where a package of the live extra is not there."""
    return InputError(
        f"this needs the packages of the live extra, and {error.name!r} is missing: pip install 'argus-sim[live]'"
    )


def sound_url(url: str) -> str:
    """The address of a server without a slash or ``/v1`` at its end; :class:`InputError` where it is none."""
    if not re.match(r"https?://[^/\s]+", url):
        raise InputError(f"must begin with http:// or https://, found {url!r}", where="--url")
    return url.rstrip("/").removesuffix("/v1")


def _asked(
    name: str,
    profile_name: str | None,
    prompts: Path | None,
    slo_s: float | None,
    from_s: float,
    requests: int | None,
    seed: int,
) -> tuple[Asked, Experiment]:
    """What is asked for, and the experiment that says so in a lock file."""
    from argus_sim.experiment import Experiment
    from argus_sim.load import arrivals_from
    from argus_sim.profile import Profile

    profile = None if profile_name is None else Profile.load(profile_name)
    if slo_s is None:
        if profile is None:
            raise InputError("say it, or give a --profile whose base variant it follows from", where="--slo-s")
        slo_s = 3.0 * profile.latency(profile.base, 1).mean_s
    whole, path = read_trace(name, seed)
    trace, begin_s = arrivals_from(whole, from_s, requests)
    asked = _prompts(trace, profile, prompts, slo_s, seed)
    config: dict[str, Any] = {"name": re.sub(r"[^A-Za-z0-9._-]+", "-", trace.name).strip("-.") or "trace"}
    config["file"] = str(path.resolve())
    if trace is not whole:
        config["clip_s"] = [begin_s, begin_s + trace.duration_s]
    data = {
        "name": "load",
        "seed": seed,
        "profile": profile_name or "none",
        "traces": [config],
        "policies": ["static"],
        "slo": {"seconds": slo_s},
    }
    return asked, Experiment.check(data, where="load")


def read_trace(name: str, seed: int) -> tuple[Trace, Path]:
    """A trace and its file; a model's arrivals are those that an experiment of this seed gets."""
    from argus_sim.trace import Trace, find_trace, is_model
    from argus_sim.trace.arrivals import generate_file
    from argus_sim.workload import stream

    path = find_trace(name)
    return (generate_file(path, stream(seed, "arrivals")) if is_model(path) else Trace.read(path)), path


def _prompts(trace: Trace, profile: Any, file: Path | None, slo_s: float, seed: int) -> Asked:
    from argus_sim.load import Asked
    from argus_sim.textfile import lines_in

    if file is not None:
        try:
            texts = [line.strip() for line in lines_in(file) if line.strip()]
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=f"--prompts {file}") from None
        except UnicodeDecodeError:
            raise InputError("is not UTF-8", where=f"--prompts {file}") from None
        if not texts:
            raise InputError("holds no prompt", where=f"--prompts {file}")
        return Asked.of_texts(trace, texts, slo_s, seed)
    if profile is not None:
        return Asked.of_profile(trace, profile, slo_s, seed)
    if trace.prompt is None:
        raise InputError("the trace has no prompts; give --profile or --prompts", where=f"trace {trace.name!r}")
    return Asked.of_trace(trace, slo_s)


def _fields(settings: list[str]) -> dict[str, Any]:
    import json

    import yaml

    fields = {}
    for key, text in output.key_values(settings, "--field").items():
        if key in ("prompt", "n"):
            raise InputError(
                "is load's own to say: each request is for one image of its prompt", where=f"--field {key}"
            )
        try:
            fields[key] = yaml.safe_load(text)
            json.dumps(fields[key], allow_nan=False)
        except (yaml.YAMLError, TypeError, ValueError):  # also a date or the like, which JSON has not
            fields[key] = text
    return fields


def send(
    target: Target,
    asked: Asked,
    bodies: list[bytes],
    *,
    speed: float,
    warm_up: int = 0,
    on_image: Callable[[int, bytes], None] | None = None,
    quiet: bool = False,
) -> Answers:
    """Play the requests; Ctrl-C and its like stop it, and what there is until then is returned."""
    import asyncio
    import signal

    from argus_sim.live.client import play

    async def until_stopped() -> Answers:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        before = {signal.SIGINT: signal.getsignal(signal.SIGINT), **output.ending()}
        for number in before:
            loop.add_signal_handler(number, stop.set)
        try:
            due_s, of = asked.trace.arrival_s, asked.sent.tolist()
            return await play(
                target, due_s, bodies, of, speed=speed, stop=stop, warm_up=warm_up, on_image=on_image
            )
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    length_s = asked.trace.duration_s / speed
    output.remark(f"sending {len(asked.trace):,} requests, {output.duration(length_s)}", quiet=quiet)
    return asyncio.run(until_stopped())


def _say(
    out: Path, summary: dict[str, Any], answers: Answers, facts: list[tuple[str, str]], *, as_json: bool
) -> None:
    import pandas as pd

    from argus_sim import metrics, report

    lag_s = answers.lag_s
    if as_json:
        lag = {f"p{q}": float(pd.Series(lag_s).quantile(q / 100)) for q in (50, 90, 99)}
        output.show_json({"folder": out, "summary": summary, "send_lag_s": lag, "stopped_s": answers.stopped_s})
        return
    table = pd.DataFrame([{k: v for k, v in summary.items() if k != "peak"}])
    output.show(report.terminal_table(metrics.aggregate(table)))
    for what, value in facts:
        output.say(f"{what}: {value}")
    output.say(f"Results: {out / 'report.html'}, and beside it the run.")
