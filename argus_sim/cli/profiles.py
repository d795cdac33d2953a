"""``argus-sim profiles``: the profiles there are, what is in one, and making one from public ratings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argus_sim.cli import output
from argus_sim.errors import InputError

if TYPE_CHECKING:
    from argus_sim.profile import Profile

app = typer.Typer(no_args_is_help=True, help="List, show and import profiles: what GPUs do to prompts.")


@app.command("list", epilog=output.examples("argus-sim profiles list", "argus-sim profiles list --json"))
def list_profiles(as_json: output.Json = False, quiet: output.Quiet = False) -> None:
    """List the profiles that come with argus-sim."""
    from argus_sim.profile import Profile, shipped_profiles

    profiles = [Profile.load(folder) for folder in shipped_profiles().values()]
    if as_json:
        output.show_json([_head(profile) for profile in profiles])
        return
    for profile in profiles:
        kinds = ", ".join(f"{table} {kind}" for table, kind in profile.measured_summary().items())
        output.say(f"{profile.name}: {profile.manifest.description}")
        output.say(f"    {len(profile.variants)} variants, {len(profile.prompts)} prompts; {kinds}")


def _head(profile: Profile) -> dict[str, Any]:
    manifest = profile.manifest
    return {
        "name": profile.name,
        "description": manifest.description,
        "gpu": manifest.gpu,
        "resolution": manifest.resolution,
        "metric": manifest.metric,
        "variants": len(profile.variants),
        "prompts": len(profile.prompts),
        "provenance": profile.measured_summary(),
    }


@app.command(
    epilog=output.examples("argus-sim profiles show artefact-a100", "argus-sim profiles show my/profile")
)
def show(
    name: Annotated[
        str,
        typer.Argument(help="A shipped profile, or a profile's folder.", autocompletion=output.complete_profiles),
    ],
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Show a profile's variants, load times and where its numbers come from."""
    from argus_sim.profile import Profile

    profile = Profile.load(name)
    variants = _variants(profile)
    loads = {model: float(profile.load_samples_s(model).mean()) for model in profile.models}
    origins = [
        {"table": table, **part.model_dump()} for table in profile.tables for part in profile.provenance_of(table)
    ]
    if as_json:
        output.show_json(
            {**_head(profile), "digest": profile.digest(), "variants": variants, "mean_load_s": loads}
            | {"provenance": origins}
        )
        return
    manifest = profile.manifest
    width, height = manifest.resolution
    output.say(f"{profile.name}: {manifest.description}")
    output.say(
        f"GPU {manifest.gpu}; {width} x {height}; quality is {manifest.metric}; {len(profile.prompts)} prompts"
    )
    output.say()
    headings = (
        "variant",
        "ladder",
        "level",
        "batch 1 (s)",
        "batches",
        "best images/min",
        "relative quality",
        "to base",
    )
    output.show(
        output.grid(
            headings,
            [
                (
                    v["variant"],
                    v["strategy"],
                    str(v["level"]),
                    f"{v['latency_s']:.3f}",
                    ", ".join(map(str, v["batch_sizes"])),
                    f"{v['best_per_min']:.1f}",
                    f"{v['relative_quality']:.3f}",
                    f"{v['quality_relative_to_base']:.3f}",
                )
                for v in variants
            ],
            left=2,
        )
    )
    output.say()
    output.say("Mean load times: " + ", ".join(f"{model} {seconds:.3g} s" for model, seconds in loads.items()))
    output.say()
    for origin in origins:
        covers = "" if origin["covers"] == "*" else f" ({origin['covers']})"
        derived = f"; derived: {origin['derived']}" if origin["derived"] else ""
        output.say(f"{origin['table']}{covers}: {origin['kind']}: {origin['source']}{derived}")


def _variants(profile: Profile) -> list[dict[str, Any]]:
    import numpy as np

    relative = np.nanmean(profile.relative_quality(), axis=0)
    to_base = np.nanmean(profile.quality_relative_to_base(), axis=0)
    rows = []
    for v, variant in enumerate(profile.variants):
        sizes = profile.batch_sizes(v)
        rows.append(
            {
                "variant": variant.name,
                "model": variant.model,
                "strategy": variant.strategy,
                "level": variant.level,
                "steps": variant.steps,
                "skipped_steps": variant.skipped_steps,
                "batch_sizes": sizes,
                "latency_s": profile.latency(v, 1).mean_s,
                "best_per_min": max(60.0 * b / profile.latency(v, b).mean_s for b in sizes),
                "relative_quality": float(relative[v]),
                "quality_relative_to_base": float(to_base[v]),
            }
        )
    return rows


@app.command(
    "import",
    epilog=output.examples(
        "argus-sim profiles import genai-bench genai_bench_527_human.csv --out my/ratings "
        "--option latency_from=diffserve-a100",
        "argus-sim profiles import csv ratings.csv --out my/ratings -o latency_from=diffserve-a100 "
        "-o 'latency_of={big: sdxl, small: sd15}'",
    ),
)
def import_(
    format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="One of those that 'argus-sim profiles formats' lists.",
            autocompletion=output.complete_profile_formats,
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The data set.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the new profile.")],
    options: output.Options = [],  # noqa: B006 - typer copies it
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Make a profile from a public data set of per-prompt quality.

    Latencies are borrowed from another profile (--option latency_from=NAME), and the new profile says so.
    Values of options are YAML: --option 'models=[SDXL_Base, SDXL_Turbo]'.
    """
    import yaml

    from argus_sim.profile.importing import import_profile

    values = {}
    for key, text in output.key_values(options).items():
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"the value {text!r} is not YAML", where=f"--option {key}") from None
    profile = import_profile(format, file, **values)
    profile.save(out)
    output.remark(f"wrote {out}: {len(profile.variants)} variants, {len(profile.prompts)} prompts", quiet=quiet)
    if as_json:
        output.show_json({**_head(profile), "folder": out, "digest": profile.digest()})


@app.command(epilog=output.examples("argus-sim profiles formats", "argus-sim profiles formats --json"))
def formats(as_json: output.Json = False, quiet: output.Quiet = False) -> None:
    """List the data sets of ratings that can be imported, and their options."""
    import inspect

    from argus_sim.profile.importing import IMPORTERS, options_of

    about = {name: (inspect.getdoc(importer) or "").partition("\n")[0] for name, importer in IMPORTERS.items()}
    if as_json:
        output.show_json(
            [
                {"name": n, "description": text, "options": [o._asdict() for o in options_of(n)]}
                for n, text in about.items()
            ]
        )
        return
    for name, text in about.items():
        output.say(f"{name}: {text}")
        for option in options_of(name):
            value = "..." if option.needed else option.default
            choices = f"  ({' | '.join(option.choices)})" if option.choices else ""
            needed = f"  needed: {option.description}" if option.needed else ""
            output.say(f"    -o {option.name}={value}{choices}{needed}")
