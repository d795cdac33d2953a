"""``argus-sim serve``: an experiment's policy behind an HTTP server."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from argus_sim.cli import output
from argus_sim.errors import InputError

app = typer.Typer()


@app.command(
    epilog=output.examples(
        "argus-sim serve fig7 --policy argus --workers emulated",
        "argus-sim serve fig7 --policy argus --speed 60 --port 0",
    )
)
def serve(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXP",
            help="An experiment's YAML file or the name of a shipped one.",
            autocompletion=output.complete_experiments,
        ),
    ],
    policy: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Which of its policies; needed where it has several.")
    ] = None,
    workers: Annotated[
        str, typer.Option(metavar="KIND", help="emulated: workers that take the time the profile says.")
    ] = "emulated",
    host: Annotated[str, typer.Option(help="Address to listen on; loopback by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    speed: Annotated[float, typer.Option(help="Seconds that pass on emulated workers in one second.")] = 1.0,
    hold: Annotated[
        bool, typer.Option("--hold", help="Let time begin with the first request, as in a trace.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="By default the experiment's.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a field, e.g. cluster.workers=16; repeatable."),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="At the end, write outcomes.parquet here.")
    ] = None,
    transcript: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all happenings and commands here, as JSON lines.")
    ] = None,
    quiet: output.Quiet = False,
) -> None:
    """Serve images under an experiment's policy, by the OpenAI images API.

    The address is printed once requests are taken; logs go to stderr. SIGTERM or Ctrl-C answers what is open,
    then ends. Where the environment variable ARGUS_API_KEY is set, clients must send it as their API key.
    """
    import asyncio

    from argus_sim.cli.run import find_experiment
    from argus_sim.experiment import Experiment
    from argus_sim.simulate import Scene

    if workers != "emulated":
        raise InputError(f"no kind of workers {workers!r}. Allowed: emulated.", where="--workers")
    try:
        from argus_sim import serve as live
        from argus_sim.live.server import ServerConfig
        from argus_sim.live.telemetry import JsonLines
    except ImportError as error:
        raise InputError(
            f"serving needs the packages of the live extra, and {error.name!r} is missing: "
            "pip install 'argus-sim[live]'"
        ) from None

    scene = Scene.of(Experiment.load(find_experiment(experiment), settings or []))
    chosen = live.choose_policy(scene, policy)
    key = os.environ.get("ARGUS_API_KEY") or None
    config = live.LiveConfig(
        ServerConfig(host, port, key), speed, hold, scene.experiment.seed if seed is None else seed
    )
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("argus_sim.live")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if key is None and host not in ("127.0.0.1", "::1", "localhost"):
        output.remark(f"note: anybody who reaches {host} may ask for images; set ARGUS_API_KEY", quiet=quiet)
    with contextlib.ExitStack() as stack:
        stack.callback(logger.removeHandler, handler)
        file = stack.enter_context(transcript.open("w", encoding="utf-8")) if transcript else None
        service = live.build(scene, chosen, config, transcript=file)
        asyncio.run(live.run(service, on_ready=lambda url: output.say(f"serving {chosen.label} at {url}")))
        requests = service.executor.engine.requests
        if record is not None and len(requests):
            from argus_sim.report import write_atomically

            run = live.record(scene, service.executor, max(service.executor.clock_s, requests.arrival_s[-1]))
            write_atomically(record, run.frame().to_parquet(None, index=False, compression="zstd"))
            output.remark(f"wrote {record}", quiet=quiet)
