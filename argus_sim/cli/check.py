"""``argus-sim validate`` and ``argus-sim policies``: what is sound and what there is."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from argus_sim.cli import output
from argus_sim.cli.output import duration
from argus_sim.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from argus_sim.profile import Profile
    from argus_sim.trace import Trace

app = typer.Typer()


class Found(NamedTuple):
    """What a check found: what it is, its name, what is in it, and what is odd about it but not wrong."""

    kind: str
    name: str
    facts: list[str]
    remarks: list[str] = []


@app.command(
    epilog=output.examples(
        "argus-sim validate experiments/fig7.yaml",
        "argus-sim validate fig7 --set cluster.workers=12",
        "argus-sim validate artefact-a100",
        "argus-sim validate my_trace.csv --json",
    )
)
def validate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="An experiment (YAML or lock file), a trace or its YAML specification, a profile's folder, "
            "or the name of a shipped one.",
            autocompletion=output.complete_anything,
        ),
    ],
    settings: output.Settings = None,
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Check an experiment, a profile or a trace without running anything.

    Exit code 0 says that it is sound; otherwise one message says what is wrong and where, and the code is 2.
    """
    found = _check(what, settings or [])
    if settings and found.kind != "experiment":
        raise InputError(f"is for experiments; {what!r} is a {found.kind}", where="--set")
    if as_json:
        output.show_json(found._asdict())
        return
    output.say(f"{found.name}: a sound {found.kind}")
    for fact in found.facts:
        output.say(f"    {fact}")
    for remark in found.remarks:
        output.remark(f"note: {remark}", quiet=quiet)


def _check(what: str, settings: Sequence[str]) -> Found:
    from argus_sim.profile import Profile, shipped_profiles
    from argus_sim.trace import Trace, find_trace, shipped_models, shipped_traces

    path = Path(what)
    if path.is_dir() or (what in shipped_profiles() and not path.exists()):
        return _profile(Profile.load(what))
    if path.suffix in (".csv", ".parquet"):
        return _trace(Trace.read(path))
    if path.suffix in (".yaml", ".yml", ".json"):
        return _yaml(path, settings)
    if path.is_file():
        raise InputError("is neither YAML nor a trace (.csv, .parquet) nor a profile's folder", where=what)
    if what in shipped_traces():
        return _trace(Trace.read(find_trace(what)))
    if what in shipped_models():
        return _yaml(find_trace(what), settings)
    experiments = output.shipped_experiments()
    if what in experiments:
        return _yaml(experiments[what], settings)
    names = [*shipped_profiles(), *shipped_traces(), *shipped_models(), *experiments]
    raise InputError(f"there is no file {what!r}, and nothing shipped has that name{did_you_mean(what, names)}")


def _yaml(path: Path, settings: Sequence[str]) -> Found:
    """An experiment, or the specification of a trace."""
    from argus_sim.experiment import Experiment, runner
    from argus_sim.experiment.basis import rescaled, unused
    from argus_sim.experiment.rehearsal import rehearse
    from argus_sim.experiment.scene import Scene
    from argus_sim.experiment.settings import read_yaml
    from argus_sim.trace.arrivals import generate_file

    if "arrivals" in read_yaml(path):
        return _trace(generate_file(path))._replace(kind="specification of a trace")
    experiment = Experiment.load(path, settings)
    scene = Scene.of(experiment)
    points = experiment.points()
    scenes = [Scene.of(point.experiment) for point in points] or [scene]
    for each in scenes:
        rehearse(each)
    per_min = 60.0 * scene.capacity_per_s
    runs = sum(len(runner.runs_of(each.experiment)) for each in scenes)
    size = (
        f"{len(experiment.policies)} policies x {len(experiment.traces)} traces x {experiment.replications} seeds"
    )
    facts = [
        f"{runs} runs: {size}" if not points else f"{runs} runs: {len(points)} points of a sweep x up to {size}",
        f"{experiment.cluster.workers} workers serve {per_min:,.1f} images/min at the base variant; "
        f"the SLO is {scene.slo_s:.4g} s",
    ]
    facts += [
        f"sweep over {name}: {', '.join(axis.labelled)}"
        for name, axis in (experiment.sweep.axes.items() if experiment.sweep is not None else ())
    ]
    facts += [
        f"kind {kind.name}: {kind.workers} workers, base variant {timings.mean_s[scene.catalog.base][1]:.4g} s"
        for kind, timings in zip(scene.kinds, scene.catalog.kinds, strict=False)
    ]
    for config in experiment.traces:
        trace = scene.trace(config, experiment.seed)
        window_s = min(300.0, trace.duration_s)
        peak_per_min = 60.0 * trace.peak_per_s(window_s)
        facts.append(
            f"trace {config.name}: {len(trace):,} requests in {duration(trace.duration_s)}, at most "
            f"{peak_per_min:,.1f}/min over {duration(window_s)}: {peak_per_min / per_min:.2f} x that"
        )
    remarks = dict.fromkeys([*rescaled(experiment), *(remark for each in scenes for remark in unused(each))])
    return Found("experiment", experiment.name, facts, list(remarks))


def _profile(profile: Profile) -> Found:
    kinds = [f"{table}: {kind}" for table, kind in profile.measured_summary().items()]
    return Found("profile", profile.name, kinds, list(profile.validate()))


def _trace(trace: Trace) -> Found:
    facts = [f"{len(trace):,} requests in {duration(trace.duration_s)}"]
    facts += [f"{part.kind}: {part.source}" for part in trace.provenance]
    return Found("trace", trace.name, facts)


@app.command(
    epilog=output.examples("argus-sim policies", "argus-sim policies argus", "argus-sim policies --json")
)
def policies(
    name: Annotated[
        str | None,
        typer.Argument(help="Only this one (or package.module:Class).", autocompletion=output.complete_policies),
    ] = None,
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """List the installed policies, what they do, and their parameters with defaults."""
    found = list(_policies(name, quiet))
    if as_json:
        output.show_json(found)
        return
    for policy in found:
        output.say(f"{policy['name']}: {policy['description']}")
        output.say(f"    {policy['source']}")
        for p in policy["parameters"]:
            default = json.dumps(p["default"], ensure_ascii=False)
            output.say(f"    - {p['name']}: {default} ({p['type']}). {p['description']}".rstrip())


def _policies(name: str | None, quiet: bool) -> Iterator[dict[str, Any]]:
    from argus_sim.policies import registry

    for each in [name] if name else registry.names():
        try:
            policy = registry.find(each)
        except InputError as error:
            if name:
                raise
            # One that another package brought and that does not import must not hide the others.
            output.remark(f"note: {error}", quiet=quiet)
            continue
        schema = policy.Params.model_json_schema()
        yield {
            "name": each,
            "class": f"{policy.__module__}:{policy.__qualname__}",
            "description": _first_line(policy),
            "source": _first_line(inspect.getmodule(policy)),
            "parameters": [
                {
                    "name": key,
                    "type": type_of(field),
                    "default": field.get("default", "required"),
                    "description": field.get("description", ""),
                }
                for key, field in schema.get("properties", {}).items()
            ],
        }


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n\n")[0].replace("\n", " ")


def type_of(field: dict[str, Any]) -> str:
    """A field of a JSON schema in a few words.

    >>> type_of({"type": "integer", "minimum": 1})
    'integer >= 1'
    >>> type_of({"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]})
    'a | b | null'
    """
    if "discriminator" in field:
        return " | ".join(f"kind: {kind}" for kind in field["discriminator"]["mapping"])
    if "anyOf" in field:
        return " | ".join(type_of(option) for option in field["anyOf"])
    if "enum" in field or "const" in field:
        return " | ".join(str(value) for value in field.get("enum", [field.get("const")]))
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    said = [f"{sign} {field[key]:g}" for key, sign in bounds.items() if key in field]
    return " ".join([str(field.get("type", "any")), *said])
