"""``argus-sim validate-live``: is the live server what the simulator says it is?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argus_sim.cli import output
from argus_sim.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from argus_sim.experiment.scene import Scene
    from argus_sim.fidelity import Twin
    from argus_sim.validate_live import Plan

app = typer.Typer()

#: Copies with moved delays, where none are asked for and there is such a thing.
_JITTERED = 20
#: What serve is told by us, and why it is not to be told otherwise: the simulation would not hear of it.
_OURS = {
    **dict.fromkeys(
        ("--policy", "--seed", "--set", "--speed", "--workers", "--due-times"),
        "is validate-live's own; give it before --",
    ),
    **dict.fromkeys(("--timings", "--time"), "is what --time-workers does; give that before --"),
    **dict.fromkeys(("--hold", "--port"), "is validate-live's to say; leave it out"),
}


@app.command(
    "validate-live",
    context_settings={"allow_extra_args": True},
    epilog=output.examples(
        "argus-sim validate-live fig7 --policy static --speed 60",
        "argus-sim validate-live fig7 --policy argus --speed 60 --from-s peak --due-times 2 --repeat 3",
        "argus-sim validate-live shapes --policy argus --workers diffusers --requests 300 --time-workers "
        "--score 300 -- --zoo shapes",
    ),
)
def validate_live(
    context: typer.Context,
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXP",
            help="An experiment's YAML file or the name of a shipped one; after --, options for serve.",
            autocompletion=output.complete_experiments,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("runs/validate-live"),
    policy: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Which of its policies; needed where it has several.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of its traces; by default the first.")
    ] = None,
    requests: Annotated[int, typer.Option(metavar="N", min=1, help="How many requests count.")] = 2000,
    from_s: Annotated[
        str, typer.Option(metavar="S|peak", help="Where in the trace they begin; peak: the N that come fastest.")
    ] = "0",
    lead_in_s: Annotated[
        float, typer.Option(metavar="S", min=0, help="Play so much of the trace before them, uncounted.")
    ] = 0.0,
    speed: Annotated[float, typer.Option(help="Seconds of the trace in a real one; for emulated ones.")] = 1.0,
    workers: Annotated[str, typer.Option(metavar="KIND", help="As serve has them: emulated, ...")] = "emulated",
    due_times: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Emulated workers only: take HTTP's time out. Requests say when they are due, and the server "
            "runs S real seconds late.",
        ),
    ] = None,
    jittered: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=0,
            help="Emulated workers only: simulate K times with the live arrivals' delays at other requests, to "
            f"see how much that alone changes. By default {_JITTERED}.",
        ),
    ] = None,
    time_workers: Annotated[
        bool,
        typer.Option(
            "--time-workers",
            help="Real workers only: time the variants on the workers before and after the load; say how the "
            "machine's pace changed, and simulate with these times.",
        ),
    ] = False,
    score: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Real workers only: rate N of the images, as the profile's were."),
    ] = 0,
    scorer: Annotated[
        str | None, typer.Option(metavar="NAME=FOLDER", help="What rates them; by default the zoo's own.")
    ] = None,
    repeat: Annotated[int, typer.Option(metavar="R", min=1, help="Runs, each with a seed of its own.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first; by default the experiment's.")] = None,
    settings: output.Settings = None,
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Play an experiment's requests against a server of its own, simulate the same, and compare.

    The server runs in a process of its own and is asked over HTTP. Errors are those of the simulation's twin:
    live / simulated - 1. Written are validation.json and validation.html.
    """
    from argus_sim.cli.load import extra_missing, send
    from argus_sim.cli.run import find_experiment
    from argus_sim.experiment.runner import no_nan
    from argus_sim.fidelity import plain

    try:
        from argus_sim import serve as live
        from argus_sim import validate_live as validate
        from argus_sim.live.client import FAILED
    except ImportError as error:
        raise extra_missing(error) from None
    plan = _plan(requests, from_s, lead_in_s, speed, workers, due_times)
    jitters = plan.emulated and due_times is None
    if jittered and not jitters:
        why = "with --due-times nothing arrives late" if plan.emulated else "it is for emulated workers"
        raise InputError(f"moves no delays here: {why}", where="--jittered")
    plan = replace(plan, jittered=(_JITTERED if jittered is None else jittered) if jitters else 0)
    if plan.emulated and (time_workers or score):
        raise InputError("is for real workers", where="--time-workers" if time_workers else "--score")
    if scorer is not None and not score:
        raise InputError("says what rates images; give --score too", where="--scorer")
    if out.exists() and not out.is_dir():
        raise InputError("is not a folder", where=str(out))
    for word in context.args:
        option = word.partition("=")[0]
        if option in _OURS:
            raise InputError(_OURS[option], where=option)
    path = find_experiment(experiment)
    scene = live.scene_of(path, settings or [])
    chosen = live.choose_policy(scene, policy)
    config = _trace(scene, trace)
    serve = [str(path), "--workers", workers]
    serve += [word for setting in settings or [] for word in ("--set", setting)] + context.args
    if score:
        from argus_sim.live.scoring import scorer_of

        plan = replace(plan, scored=score, scorer=scorer_of(scene.profile, _zoo(context.args), scorer))
    plan = replace(plan, timed=time_workers)
    first = scene.experiment.seed if seed is None else seed
    twins: list[Twin] = []
    try:
        with output.ended_by_signals():
            for number in range(repeat):
                twin, answers = validate.twin_of(
                    scene, chosen, config, first + number, plan, serve,
                    lambda target, asked, bodies, on_image: send(
                        target, asked, bodies, speed=speed, warm_up=validate.CONNECTIONS, on_image=on_image,
                        quiet=quiet,
                    ),
                )  # fmt: skip
                twins.append(twin)
                failed = int((answers.status == FAILED).sum())
                if failed:
                    output.remark(f"warning: {failed} requests had no answer; the simulation is of all of them")
    except KeyboardInterrupt:
        output.remark("interrupted; nothing was written")
        raise typer.Exit(130) from None
    facts = _facts(scene, chosen.label, config.name, plan, workers, twins)
    content = {**dict(facts), **plain(twins)}
    _write(out, f"{scene.experiment.name}: {chosen.label}, live and simulated", twins, facts, plan, content)
    if as_json:
        output.show_json({"folder": out, **no_nan(content)})
    else:
        _say(twins, facts, out)


def _plan(
    requests: int, from_s: str, lead_in_s: float, speed: float, workers: str, due_times: float | None
) -> Plan:
    from argus_sim.validate_live import Plan

    emulated = workers == "emulated"
    try:
        begin_s = None if from_s == "peak" else float(from_s)
    except ValueError:
        raise InputError(f"must be seconds or 'peak', found {from_s!r}", where="--from-s") from None
    if begin_s is not None and not 0 <= begin_s < float("inf"):
        raise InputError(f"must be 0 or above, found {from_s}", where="--from-s")
    if not 0 < speed < float("inf"):
        raise InputError(f"must be above 0, found {speed}", where="--speed")
    if not emulated and (speed != 1 or due_times is not None):
        where = "--speed" if speed != 1 else "--due-times"
        raise InputError(f"only emulated workers can be told their time; {workers} take their own", where=where)
    return Plan(requests, begin_s, lead_in_s, speed, due_times, emulated)


def _zoo(arguments: list[str]) -> str:
    """The zoo that is named in arguments for serve; "" if none is, which serve will say."""
    for index, word in enumerate(arguments):
        if word.startswith("--zoo="):
            return word.removeprefix("--zoo=")
        if word == "--zoo" and index + 1 < len(arguments):
            return arguments[index + 1]
    return ""


def _trace(scene: Scene, name: str | None) -> Any:
    traces = {trace.name: trace for trace in scene.experiment.traces}
    if name is not None and name not in traces:
        raise InputError(f"no trace {name!r}{did_you_mean(name, traces)}", where="--trace")
    return next(iter(traces.values())) if name is None else traces[name]


def _facts(
    scene: Scene, label: str, trace: str, plan: Plan, workers: str, twins: list[Twin]
) -> list[tuple[str, str]]:
    from importlib.metadata import version

    counts = sorted({len(twin.simulated) for twin in twins})  # a trace may have fewer than are wanted
    requests = " to ".join(dict.fromkeys(str(count) for count in (counts[0], counts[-1])))
    begin = "at the peak" if plan.from_s is None else f"from {plan.from_s:g} s"
    times = "as they arrive over HTTP"
    if plan.due_times is not None:
        times = f"as requests say they are due; the server runs {plan.due_times:g} real seconds late"
    return [
        ("experiment", scene.experiment.name),
        ("policy", label),
        ("requests", f"{requests} of {trace}, {begin}, {plan.lead_in_s:g} s of lead-in"),
        ("workers", f"{scene.experiment.cluster.workers}, {workers}"),
        ("speed", f"{plan.speed:g} s of the trace in a second"),
        ("times of arrival", times),
        ("made with", f"argus-sim {version('argus-sim')}"),
    ]


def _notes(twins: list[Twin], plan: Plan) -> list[str]:
    notes = []
    if twins[0].live is not twins[0].at_client:
        notes.append(
            "Live is by the server's clock, from arrival to the end of the batch. By the client's clock, from "
            f"due to read, each real millisecond of HTTP counts as {1e-3 * plan.speed:g} s: no user of a server "
            "at its own speed would see that."
        )
    if plan.due_times is not None:
        notes.append("HTTP carried the requests, but its time is taken out: requests said when they were due.")
    return notes


def _write(
    out: Path, title: str, twins: list[Twin], facts: list[tuple[str, str]], plan: Plan, content: dict[str, Any]
) -> None:
    from argus_sim.experiment.runner import no_nan
    from argus_sim.fidelity import write_page
    from argus_sim.files import write_atomically

    write_page(out / "validation.html", title, twins, facts, _notes(twins, plan))
    write_atomically(out / "validation.json", (json.dumps(no_nan(content), indent=1) + "\n").encode())


def _say(twins: list[Twin], facts: list[tuple[str, str]], out: Path) -> None:
    from argus_sim.fidelity import errors, extra_tables, interval_text, named, table, words

    for what, value in facts[:-1]:
        output.say(f"{what}: {value}")
    for twin in twins:
        output.say()
        first = (f"seed {twin.seed}", "simulated", "live", "error", "client's clock", "error")
        output.show(output.grid(first, table(twin)))
        for headings, rows in extra_tables(twin):
            output.say()
            output.show(output.grid(headings, rows))
        for what, value in words(twin):
            output.say(f"{what}: {value}")
    if len(twins) > 1:
        output.say()
        output.show(
            output.grid(
                ("mean error, 95 % interval", ""),
                [(named(metric), interval_text(got)) for metric, got in errors(twins).items()],
            )
        )
    output.say(f"Results: {out / 'validation.html'}, and beside it validation.json.")
