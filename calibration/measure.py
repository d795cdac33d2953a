"""One calibration from the wishes of a command line to a profile's folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from argus_sim.cli.output import duration
from argus_sim.errors import InputError, did_you_mean
from calibration import estimate, scorers
from calibration.assemble import Assembled, assemble
from calibration.hardware import Hardware, describe, resolve_device
from calibration.latency import DEFAULT_IDLE_S
from calibration.pipelines import DTYPES, check_parameters, need_torch, precision
from calibration.plan import CHUNK, Plan, Settings, estimate_s, make_plan, prompts_digest
from calibration.progress import Progress
from calibration.prompts import DEFAULT_NUMBER, read_prompts
from calibration.quality import contact_sheet
from calibration.runner import Calibration
from calibration.store import OK, Store
from calibration.text import DEFAULT_EMBEDDING, check_clip, neighbours
from calibration.weights import Weights, fingerprint, locate
from calibration.wishes import DEFAULT_ZOO, Wishes, as_begun, models_of
from calibration.zoo import SHAPES, ZOOS, ZooModel, select

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """Everything decided, nothing measured."""

    settings: Settings
    plan: Plan
    entries: list[ZooModel]
    weights: dict[str, Weights]
    prompts: pd.DataFrame
    prompts_origin: str
    out: Path
    hardware: Hardware


def prepare(wishes: Wishes, remark: Say) -> Prepared:
    """Decide what to do.

    Raises:
        InputError: Something asked for is not to be had; the message says what is.
    """
    if wishes.latency_only and wishes.quality_only:
        raise InputError("--latency-only and --quality-only leave nothing to do")
    if wishes.quality_only and wishes.random_weights:
        raise InputError(
            "images of random weights have no quality: --random-weights and --quality-only exclude it"
        )
    out = wishes.out or _default_out(wishes)
    begun = Store(out).planned() if wishes.resume else {}
    wishes = as_begun(wishes, begun)
    zoo = wishes.zoo or DEFAULT_ZOO
    chosen = select(zoo, wishes.models or models_of(begun, wishes.weights), wishes.weights)
    if wishes.random_weights and (read := [entry.name for entry in chosen if entry.folder is not None]):
        raise InputError(
            f"builds models from their architectures, but {', '.join(read)} would be read from a folder"
            " (--zoo shapes, --models NAME=FOLDER, --weights DIR): leave out one or the other",
            where="--random-weights",
        )
    check_clip(wishes.embedding or DEFAULT_EMBEDDING, ours=zoo == "shapes")
    if wishes.steps is not None:
        if wishes.steps < 1:
            raise InputError(f"at least 1 step, not {wishes.steps}", where="--steps")
        # A model that was distilled for few steps is run with those.
        chosen = [replace(entry, steps=wishes.steps) if entry.steps >= 10 else entry for entry in chosen]
    torch = need_torch()
    if wishes.threads is not None:
        torch.set_num_threads(wishes.threads)
    device = resolve_device(wishes.device, wishes.gpu)
    if device == "meta":
        raise InputError("on the meta device nothing can be measured, only sizes compared", where="--device")
    dtype = wishes.dtype or ("half" if device.startswith("cuda") else "fp32")
    if dtype not in DTYPES:
        raise InputError(f"no dtype {dtype!r}{did_you_mean(dtype, DTYPES)}", where="--dtype")
    hardware = describe(device)
    entries, weights = _with_weights(wishes, chosen, remark, going_on=bool(begun))
    prompts, origin = read_prompts(wishes.prompts or str(DEFAULT_NUMBER), zoo)
    quality = not (wishes.latency_only or wishes.random_weights)
    judges = _judges(wishes, begun.get("scorers", ()), remark) if quality else ()
    metrics = [scorers.metric_of(judge) for judge in judges]
    metric = wishes.metric or next((m for m in metrics if m == "pick_score"), metrics[0] if metrics else "absent")
    if quality and (why := scorers.lpips_obstacle()):
        remark(f"images are not rated by LPIPS: {why}")
    if quality and metric in scorers.SIGNED:
        raise InputError(f"{metric!r} can be negative, so no ratio can be formed: take another", where="--metric")
    if quality and metric not in metrics:
        raise InputError(f"no scorer gives {metric!r}{did_you_mean(metric, metrics)}", where="--metric")
    on_gpu = device.startswith("cuda")
    batches = tuple(sorted(set(wishes.batch_sizes) or ((1, 2, 4, 8) if on_gpu else (1, 2, 4))))
    seeds = 2 if wishes.seeds is None else wishes.seeds
    if batches[0] < 1 or seeds < 1:
        raise InputError("batch sizes and the number of seeds start at 1", where="--batch-sizes, --seeds")
    cell_seconds = (15.0 if on_gpu else 3.0) if wishes.cell_seconds is None else wishes.cell_seconds
    idle_seconds = DEFAULT_IDLE_S if wishes.idle_seconds is None else wishes.idle_seconds
    settings = Settings(
        zoo=zoo,
        models=tuple(entry.name for entry in entries),
        device="cuda" if on_gpu else device,
        dtype=dtype,
        approximations=wishes.approximations,
        batch_sizes=(1,) if wishes.quality_only else tuple(sorted({1, *batches})),
        steps=wishes.steps,
        seeds=seeds,
        prompts=wishes.prompts or str(DEFAULT_NUMBER),
        prompts_digest=prompts_digest(prompts),
        scorers=judges,
        metric=metric,
        embedding=wishes.embedding or DEFAULT_EMBEDDING,
        latency=not wishes.quality_only,
        quality=quality,
        random_weights=wishes.random_weights,
        cell_seconds=0.0 if wishes.quality_only else cell_seconds,
        idle_seconds=0.0 if wishes.quality_only else idle_seconds,
        rounds=1 if wishes.quality_only else wishes.rounds or 1,
        load_repeats=1 if wishes.quality_only else 3,
    )
    plan = make_plan(settings, entries, len(prompts))
    # The device's number is nobody's concern but this run's.
    settings = replace(settings, device=device)
    return Prepared(settings, plan, entries, weights, prompts, origin, out, hardware)


def _default_out(wishes: Wishes) -> Path:
    """Where a run goes whose folder is not named: after its zoo and its device."""
    need_torch()
    hardware = describe(resolve_device(wishes.device, wishes.gpu))
    name = "cpu" if hardware.name.startswith("CPU") else hardware.name
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    ending = "-random" if wishes.random_weights else ""
    return Path("calibrated") / f"{wishes.zoo or DEFAULT_ZOO}-{slug}{ending}"


def _with_weights(
    wishes: Wishes, chosen: Sequence[ZooModel], remark: Say, *, going_on: bool
) -> tuple[list[ZooModel], dict[str, Weights]]:
    """The models that can be had, and where; all of those that were named must be.

    A run that goes on has the models it began with, whatever the hub says today.
    """
    weights: dict[str, Weights] = {}
    missing: list[str] = []
    for entry in chosen:
        found = locate(entry, random_weights=wishes.random_weights, remark=remark)
        if found is None and going_on and not wishes.models:
            found = Weights("hub", entry.hub_id)  # where it is done, it is not needed; else its cells fail
        if found is None:
            missing.append(entry.name)
        else:
            weights[entry.name] = found
    if missing and (wishes.models or not weights):
        raise InputError(
            f"no weights of {', '.join(missing)}: neither in a folder (--weights DIR, one folder per model,"
            " or --models NAME=FOLDER), nor in the hub's cache, nor can they be downloaded."
            " --random-weights measures latency without any; --zoo shapes brings its own",
            where="--models" if wishes.models else f"--zoo {wishes.zoo or DEFAULT_ZOO}",
        )
    if missing:
        remark(f"no weights of {', '.join(missing)}: left out")
    return [entry for entry in chosen if entry.name in weights], weights


def _judges(wishes: Wishes, earlier: Sequence[str], remark: Say) -> tuple[str, ...]:
    """Scorers whose weights can be had, or those a run began with; those that were named must be."""
    if wishes.scorers:
        for name in wishes.scorers:
            if not scorers.available(name):
                scorers.build(name, device="cpu")  # fails with the reason, or downloads
        return wishes.scorers
    return tuple(earlier) or default_scorers(wishes.zoo or DEFAULT_ZOO, remark)


def default_scorers(zoo: str, remark: Say = lambda text: None) -> tuple[str, ...]:
    """The scorers that a zoo's images are rated by where none is named.

    Raises:
        InputError: No scorer's weights are to be had.
    """
    if zoo == "shapes":
        folder = SHAPES / "shapes-clip"
        if not folder.is_dir():
            raise InputError("the shapes zoo's scorer is missing: give one with --scorers clip=FOLDER")
        return (f"clip={folder}",)
    found = []
    for name in ("pickscore", "clip"):
        try:
            if not scorers.available(name):
                scorers.build(name, device="cpu")
        except InputError as error:
            remark(f"no scorer {name!r}: {error.message}")
            continue
        found.append(name)
    if not found:
        raise InputError(
            "no scorer's weights are to be had: give a folder (--scorers clip=FOLDER), or measure"
            " latency only (--latency-only)",
            where="--scorers",
        )
    return tuple(found)


# ---- the plan, for people


def plan_text(prepared: Prepared, budget_s: float | None) -> tuple[list[str], dict[str, float]]:
    """The plan as lines, and estimated seconds of one denoising step by model."""
    settings, plan = prepared.settings, prepared.plan
    speed = estimate.device_flops_per_s(settings.device, settings.dtype)
    step_s = {
        entry.name: estimate.step_seconds(entry, device=settings.device, dtype=settings.dtype, flops_per_s=speed)
        for entry in prepared.entries
    }
    spent = estimate_s(plan, settings, step_s, len(prepared.prompts))
    counts = {kind: sum(cell.kind == kind for cell in plan.cells) for kind in spent}
    what = ", ".join(f"{counts[kind]} {kind} (~{duration(s)})" for kind, s in spent.items() if counts[kind])
    weights = {name: where.origin for name, where in prepared.weights.items()}
    lines = [
        f"device    {prepared.hardware.name}, {settings.dtype}",
        f"models    {', '.join(f'{name} ({origin})' for name, origin in weights.items())}",
        f"variants  {', '.join(v.name for v in plan.variants)}",
        f"prompts   {len(prepared.prompts)} ({prepared.prompts_origin}), {settings.seeds} seeds"
        if settings.quality
        else f"prompts   {len(prepared.prompts)}; quality is not measured",
        f"cells     {len(plan.cells)}: {what}",
        f"time      about {duration(sum(spent.values()))}, a rough guess"
        + (f"; stops after {duration(budget_s)}" if budget_s else ""),
        f"output    {prepared.out}",
    ]
    lines += [f"left out  {name}: {reason}" for name, reason in plan.left_out]
    return lines, step_s


# ---- carrying it out


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        assembled: The profile and what is not in it.
        finished: Whether every cell was done; False when the budget ended it.
        sheets: Contact sheets that there are.
        remark: What to say of contact sheets that are missing, or "".
    """

    assembled: Assembled
    finished: bool
    sheets: tuple[Path, ...]
    remark: str


def carry_out(prepared: Prepared, wishes: Wishes, progress: Progress) -> Outcome:
    """Measure, then write the profile.

    Raises:
        InputError: The run cannot be, or did not get far enough for a profile.
        KeyboardInterrupt: What is done is kept.
    """
    p = prepared
    similarity = neighbours(list(p.prompts["prompt"]), list(p.prompts["text"]), p.settings.embedding)
    keep = wishes.sheets if p.settings.quality else 0
    with Store(p.out) as store:
        # Another GPU of the same kind gives the same cells: a run may go on there.
        settings = replace(p.settings, device=p.settings.device.partition(":")[0])
        store.begin(
            settings,
            _machine(p.hardware),
            resume=wishes.resume,
            folders=_folders(p),
            weights=_fingerprints(p) if wishes.resume else {},
        )
        calibration = Calibration(
            p.settings, p.plan, p.entries, p.weights, p.prompts, similarity, store,
            progress=progress, budget_s=wishes.budget_s, keep_images=keep,
        )  # fmt: skip
        finished = calibration.run()
        assembled = assemble(
            p.out.name, p.settings, p.plan, store, p.prompts, p.prompts_origin, similarity, p.hardware
        )
        assembled.profile.save(p.out)
        sheets, said = _write_sheets(p, store, keep)
        if finished and not store.failed():
            store.clean()  # what failed may be tried again, and needs what is there
    return Outcome(assembled, finished, sheets, said)


def _machine(hardware: Hardware) -> dict[str, str]:
    """What times depend on beside the settings."""
    versions = {k: v for k, v in hardware.libraries.items() if k not in ("python", "argus-sim")}
    return {"device": hardware.name, **versions}


def _folders(p: Prepared) -> dict[str, str]:
    """Folders of weights that are not the zoo's own: a run goes on without their being named again."""
    own = {entry.name: entry.folder for entry in ZOOS[p.settings.zoo]}
    return {
        entry.name: str(entry.folder.resolve())
        for entry in p.entries
        if entry.folder is not None and entry.folder != own.get(entry.name)
    }


def _fingerprints(p: Prepared) -> dict[str, str | None]:
    return {
        entry.name: fingerprint(p.weights[entry.name], precision(entry, p.settings.dtype, p.settings.device))
        for entry in p.entries
    }


def _write_sheets(p: Prepared, store: Store, number: int) -> tuple[tuple[Path, ...], str]:
    """One picture per prompt, rows are variants and columns seeds; and what to say of what they lack."""
    out, lacking = [], 0
    for position in range(min(number, len(p.prompts))):
        chunk, at = divmod(position, CHUNK)
        prompt = p.prompts.iloc[position]
        name = f"sheets/{prompt['prompt']}.png"
        names, rows, gone = [], [], False
        for variant in p.plan.variants:
            cells = [
                c for c in p.plan.cells if c.kind == "quality" and c.variant == variant.name and c.chunk == chunk
            ]
            arrays = [store.array(f"sheet--{cell.key}") for cell in cells]
            kept: list[Any] = [a[at].astype("float32") / 255.0 for a in arrays if a is not None]
            if kept and len(kept) == len(arrays):
                names.append(variant.name)
                rows.append(kept)
            else:
                gone = gone or all((store.get(cell.key) or {}).get("status") == OK for cell in cells)
        if gone and (store.folder / name).is_file():  # of a run that had them all
            out.append(store.folder / name)
            continue
        lacking += gone
        if rows:
            store.write(name, contact_sheet(rows, names, f"{prompt['prompt']}: {prompt['text']}"))
            out.append(store.folder / name)
    if lacking:
        return tuple(out), f"{lacking} contact sheets lack images that were made before: they were not kept"
    if number > len(p.prompts):
        return tuple(out), f"contact sheets of all {len(p.prompts)} prompts; there are no {number}"
    return tuple(out), ""


def compare_sizes(entries: Sequence[ZooModel]) -> tuple[list[tuple[str, str, int, str, bool | None]], bool]:
    """``(model, component, counted, published, agree)`` of every part, and whether none disagrees."""
    rows = [(entry.name, *row) for entry in entries for row in check_parameters(entry)]
    return rows, all(row[-1] is not False for row in rows)
