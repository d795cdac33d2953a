"""Which pipelines a profile's variants are: the very objects of the zoo that were calibrated.

Nothing heavy is imported: this is what the host knows of them. The processes that run them get it as a message.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from argus_sim.errors import InputError, did_you_mean
from argus_sim.profile import Profile
from calibration.approximations import Run, parse
from calibration.pipelines import DTYPES
from calibration.text import check_clip
from calibration.weights import Weights, locate
from calibration.zoo import ZOOS, ZooModel, select

#: Fewer steps are those of a model that was distilled for them, and are not to be changed.
_STEPS_MAY_DIFFER = 10


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant is made.

    Attributes:
        name: The variant's.
        model: Its zoo entry.
        approximation: Its name, "" for none.
        skipped: Steps that it starts after, with a stored latent.
        usual_s: Batch size -> the longest that a batch usually takes: the profile's 99th percentile.
    """

    name: str
    model: str
    approximation: str
    skipped: int
    usual_s: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class LiveZoo:
    """What worker processes need to know.

    Attributes:
        entries, weights: By model.
        recipes: By variant, in the profile's order.
        device: ``cpu`` or ``cuda``; a worker's number is that of its GPU.
        dtype: Of the weights.
        side: Of the images in pixels.
        threads: Of each worker on a CPU.
        cached_model: Whose latents the approximate cache keeps; None where no variant skips steps.
        cached_steps: At the beginning of which steps, ascending.
    """

    entries: dict[str, ZooModel]
    weights: dict[str, Weights]
    recipes: tuple[Recipe, ...]
    device: str
    dtype: str
    side: int
    threads: int
    cached_model: str | None
    cached_steps: tuple[int, ...]


def live_zoo(
    profile: Profile, zoo: str, *, folders: Path | None = None, device: str = "cpu", threads: int = 1
) -> LiveZoo:
    """The pipelines of a profile.

    Args:
        profile: What is to be served.
        zoo: Name of the zoo that it was calibrated on.
        folders: Holds a folder of weights per model, where the zoo has none of its own.
        device: ``cpu`` or ``cuda``.
        threads: Of each worker on a CPU.

    Raises:
        InputError: A variant cannot be made as the profile says; says which and why.
    """
    where = f"profile {profile.name!r}"
    if device not in ("cpu", "cuda"):
        raise InputError(f"no device {device!r}. Allowed: cpu, cuda.", where="--device")
    known = {entry.name: entry for entry in select(zoo, (), folders)}
    for name in profile.models:
        if name not in known:
            raise InputError(f"zoo {zoo!r} has no model {name!r}{did_you_mean(name, known)}", where=where)
    for package in ("torch", "diffusers", "transformers", "torchmetrics"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"diffusers workers need the packages of the calibrate extra, and {package!r} is missing: "
                "pip install 'argus-sim[calibrate,live]'",
                where="--workers",
            )
    entries: dict[str, ZooModel] = {}
    weights: dict[str, Weights] = {}
    for name in profile.models:
        entries[name] = _with_steps(profile, known[name])
        found = locate(known[name], online=False)
        if found is None:
            raise InputError(
                f"no weights of {name!r}, neither in a folder (--weights DIR, one folder per model) nor in the "
                "hub's cache",
                where=f"--zoo {zoo}",
            )
        weights[name] = found
    recipes = tuple(_recipe(profile, index, entries, device) for index in range(len(profile.variants)))
    width, height = profile.manifest.resolution
    if width != height:
        raise InputError(f"its images are {width} x {height}; the zoo's are square", where=where)
    dtype = profile.manifest.dtype or ("half" if device == "cuda" else "fp32")
    if dtype not in DTYPES:
        raise InputError(f"its dtype is {dtype!r}{did_you_mean(dtype, DTYPES)}", where=where)
    skipping = [recipe for recipe in recipes if recipe.skipped]
    cached = sorted({recipe.model for recipe in skipping})
    if len(cached) > 1:
        raise InputError(
            f"variants of {' and '.join(cached)} skip steps; the live cache keeps latents of one model",
            where=where,
        )
    steps = tuple(sorted({recipe.skipped for recipe in skipping}))
    model = cached[0] if cached else None
    return LiveZoo(entries, weights, recipes, device, dtype, width, threads, model, steps)


def check_embedding(embedding: str, zoo: str) -> None:
    """Raises InputError where an embedding does not know a zoo's prompts; no such zoo is for :func:`live_zoo`."""
    if zoo in ZOOS:
        check_clip(embedding, ours=zoo == "shapes")


def _with_steps(profile: Profile, entry: ZooModel) -> ZooModel:
    """A profile may have been measured with another number of steps than the zoo's."""
    plain = next((v for v in profile.variants if v.name == entry.name), None)
    if plain is None or entry.steps < _STEPS_MAY_DIFFER:
        return entry
    return replace(entry, steps=plain.steps)


def _recipe(profile: Profile, index: int, entries: dict[str, ZooModel], device: str) -> Recipe:
    variant = profile.variants[index]
    where = f"profile {profile.name!r}: variant {variant.name!r}"
    model, _, name = variant.name.partition("/")
    if model != variant.model:
        raise InputError(f"it runs model {variant.model!r}; the zoo would run {model!r}", where=where)
    entry = entries[model]
    try:
        approximation = parse(name)
        run = approximation.adjust(Run(entry.steps))
    except InputError as error:
        raise InputError(error.message, where=where) from None
    obstacle = approximation.obstacle(entry, device)
    if obstacle:
        raise InputError(obstacle, where=where)
    if (run.steps, run.skipped) != (variant.steps, variant.skipped_steps):
        raise InputError(
            f"it runs {variant.steps} steps less {variant.skipped_steps}; the zoo runs {run.steps} less "
            f"{run.skipped}",
            where=where,
        )
    usual_s = {size: profile.latency(index, size).p99_s for size in profile.batch_sizes(index)}
    return Recipe(variant.name, model, name, run.skipped, usual_s)
