"""``argus-sim serve``: an experiment's policy behind an HTTP server."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from argus_sim.cli import output
from argus_sim.errors import InputError, did_you_mean

app = typer.Typer()


@app.command(
    epilog=output.examples(
        "argus-sim serve fig7 --policy argus --workers emulated",
        "argus-sim serve fig7 --policy argus --speed 60 --port 0",
        "argus-sim serve shapes --policy argus --workers diffusers --zoo shapes --set cluster.workers=2",
        "argus-sim serve shapes --policy argus --workers diffusers --zoo shapes --set cluster.kind=ray",
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
        str,
        typer.Option(
            metavar="KIND",
            help="emulated: workers that take the time the profile says; diffusers: a process each that runs "
            "the zoo's pipelines.",
        ),
    ] = "emulated",
    zoo: Annotated[
        str | None, typer.Option(metavar="ZOO", help="The zoo that the profile was calibrated on: sd, shapes.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder of weights per model, for a zoo without its own.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, or cuda: a GPU for each worker, by number. By default cpu.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each worker on a CPU; by default the profile's.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep latents here, for the next time too. By default they are forgotten."
        ),
    ] = None,
    cache_bytes: Annotated[
        int | None, typer.Option(min=0, metavar="BYTES", help="The most that latents take; 1 GiB by default.")
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            help="Of prompts in the cache: ngrams, minilm, minilm=FOLDER, clip=FOLDER; clip is the shapes zoo's. "
            "By default the profile's own."
        ),
    ] = None,
    qdrant: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A Qdrant server to hold the cache's index; its key is QDRANT_API_KEY."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="With cluster.kind=ray: the Ray cluster to join, or auto for this machine's. By default the "
            "experiment's, or else one that goes with the server.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    speed: Annotated[float, typer.Option(help="Seconds that pass on emulated workers in one second.")] = 1.0,
    hold: Annotated[
        bool, typer.Option("--hold", help="Let time begin with the first request, as in a trace.")
    ] = False,
    due_times: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Emulated workers only: requests arrive when their header x-argus-due-s says; time runs these "
            "real seconds late, to have them here by then. Implies --hold.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="By default the experiment's.")] = None,
    settings: output.Settings = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="At the end, write outcomes.parquet here.")
    ] = None,
    transcript: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all happenings and commands here, as JSON lines.")
    ] = None,
    timings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Diffusers workers only: time the variants before the first request and after the last, on the "
            "workers themselves, and write that here as JSON.",
        ),
    ] = None,
    timed: Annotated[
        list[str] | None,
        typer.Option("--time", metavar="VARIANT@SIZE", help="What --timings times; repeatable. All by default."),
    ] = None,
    quiet: output.Quiet = False,
) -> None:
    """Serve images under an experiment's policy, by the OpenAI images API.

    The address is printed once requests are taken; logs go to stderr. SIGTERM or Ctrl-C answers what is open,
    then ends; a second one does not wait for that. Where the environment variable ARGUS_API_KEY is set, clients
    must send it as their API key.
    """
    import asyncio

    from argus_sim.cli.run import find_experiment

    if workers not in ("emulated", "diffusers"):
        kinds = ("emulated", "diffusers")
        raise InputError(f"no kind of workers {workers!r}{did_you_mean(workers, kinds)}", where="--workers")
    for_pipelines = {
        "zoo": zoo, "weights": weights, "device": device, "threads": threads, "cache": cache,
        "cache_bytes": cache_bytes, "embedding": embedding, "qdrant": qdrant, "ray_address": ray_address,
        "timings": timings,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in for_pipelines.items() if value is not None}
    if workers == "emulated" and given:
        option = "--" + next(iter(given)).replace("_", "-")
        raise InputError("is for --workers diffusers: emulated ones run no pipelines", where=option)
    if timed and timings is None:
        raise InputError("says what --timings times; give that too", where="--time")
    if workers == "diffusers" and zoo is None:
        raise InputError("diffusers workers need it: the zoo that the profile was calibrated on", where="--zoo")
    try:
        from argus_sim import serve as live
        from argus_sim.live.server import ServerConfig
        from argus_sim.live.telemetry import LogWriter
        from argus_sim.real_workers import PipelinesConfig
    except ImportError as error:
        raise InputError(
            f"serving needs the packages of the live extra, and {error.name!r} is missing: "
            "pip install 'argus-sim[live]'"
        ) from None

    scene = live.scene_of(find_experiment(experiment), settings or [])
    chosen = live.choose_policy(scene, policy)
    if workers == "emulated" and scene.experiment.cluster.kind == "ray":
        output.remark("note: emulated workers are this process's own timers; Ray starts none", quiet=quiet)
    key = os.environ.get("ARGUS_API_KEY") or None
    config = live.LiveConfig(
        ServerConfig(host, port, key),
        speed,
        hold,
        scene.experiment.seed if seed is None else seed,
        PipelinesConfig(**given, timed=tuple(timed or ())) if given else None,
        due_times=due_times,
    )
    for option, file in (("--record", record), ("--timings", timings)):
        if file is not None:
            _check_writable(file, option)
    if key is None and host not in ("127.0.0.1", "::1", "localhost"):
        output.remark(f"note: anybody who reaches {host} may ask for images; set ARGUS_API_KEY", quiet=quiet)
    with contextlib.ExitStack() as stack:
        # Of all libraries: the web server's complaints about clients are lines of JSON, too.
        logs, ours = LogWriter(), logging.getLogger("argus_sim.live")
        logging.getLogger().addHandler(logs)
        stack.callback(logs.close)
        stack.callback(logging.getLogger().removeHandler, logs)
        ours.setLevel(logging.WARNING if quiet else logging.INFO)
        # Not emptied, and not left behind where it is new: there may be no port to listen on.
        if transcript is not None and not transcript.exists():
            stack.callback(_remove_empty, transcript)
        lines = stack.enter_context(transcript.open("a", encoding="utf-8")) if transcript else None
        service = live.build(scene, chosen, config, transcript=lines)
        asyncio.run(live.run(service, on_ready=lambda url: output.say(f"serving {chosen.label} at {url}")))
    requests = service.executor.engine.requests
    if record is None:
        return
    if not len(requests):
        output.remark(f"no requests came: {record} is not written", quiet=quiet)
        return
    from argus_sim.files import write_atomically

    run = live.record(scene, service.executor, max(service.executor.clock_s, requests.arrival_s[-1]))
    write_atomically(record, run.frame().to_parquet(None, index=False, compression="zstd"))
    output.remark(f"wrote {record}", quiet=quiet)


def _check_writable(path: Path, option: str) -> None:
    """Raises InputError now rather than when the server has run for hours."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", where=option) from None


def _remove_empty(path: Path) -> None:
    if path.is_file() and not path.stat().st_size:
        path.unlink()
