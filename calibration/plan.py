"""What a calibration will do, before it does any of it: variants, cells, and how long that may take.

A cell is the smallest piece of work that is kept: the loads of a model, the latency of a variant in one batch
size, the images of a variant for some prompts and a seed. A run that was stopped goes on with the cells that are
missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import pandas as pd

from argus_sim.errors import InputError
from calibration.approximations import DEFAULT, Approximation, Run, parse
from calibration.latency import allowed_s, longest_s
from calibration.zoo import ZooModel

Kind = Literal["load", "parts", "latency", "idle", "drift", "quality"]

#: Stands alone in the place of approximations: models are measured as they are.
NONE: Final = "none"
#: Prompts of a quality cell; images are made in batches of this many.
CHUNK: Final = 8
#: Runs of each depth of approximate caching whose time is held against the parts of the full runs beside them:
#: the fewest of which a median has a 95 % interval.
SKIPPING_ROUNDS: Final = 6


@dataclass(frozen=True, slots=True)
class Settings:
    """All that decides what a calibration measures. Two runs of equal settings have equal cells."""

    zoo: str
    models: tuple[str, ...]
    device: str
    dtype: str
    approximations: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    steps: int | None
    seeds: int
    prompts: str
    prompts_digest: str
    scorers: tuple[str, ...]
    metric: str
    embedding: str
    latency: bool
    quality: bool
    random_weights: bool
    cell_seconds: float
    idle_seconds: float
    rounds: int
    load_repeats: int

    @property
    def round_seconds(self) -> float:
        """Time for a latency in one round."""
        return self.cell_seconds / self.rounds

    def as_json(self) -> dict[str, Any]:
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """A variant to calibrate.

    Attributes:
        name: ``model`` or ``model/approximation``.
        model: Zoo name.
        approximation: Its name, "" for none.
        strategy: Ladder it belongs to; ``BASE`` for the base.
        rank: How approximate it is; decides levels where latencies do not.
        steps, skipped: Of its run.
    """

    name: str
    model: str
    approximation: str
    strategy: str
    rank: float
    steps: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of work; `key` names its file."""

    key: str
    kind: Kind
    model: str
    variant: str = ""
    batch: int = 0
    seed: int = 0
    chunk: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Variants and cells in the order they are done, and approximations that were left out with the reason."""

    variants: tuple[PlannedVariant, ...]
    cells: tuple[Cell, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def base(self) -> PlannedVariant:
        return self.variants[0]

    def variant(self, name: str) -> PlannedVariant:
        return next(v for v in self.variants if v.name == name)

    def of_model(self, model: str) -> list[PlannedVariant]:
        return [v for v in self.variants if v.model == model]

    def skipping(self, model: str) -> list[PlannedVariant]:
        """The model's variants of approximate caching alone."""
        return [v for v in self.of_model(model) if v.strategy.partition("@")[0] == "AC"]


def make_plan(settings: Settings, entries: Sequence[ZooModel], prompts: int) -> Plan:
    """Decide variants and cells. The first model is the base.

    Raises:
        InputError: An approximation that was asked for by name cannot be.
    """
    variants, left_out = _variants(settings, entries)
    cells: list[Cell] = []
    for number, entry in enumerate(entries):
        mine = [v for v in variants if v.model == entry.name]
        cells.append(_cell("load", entry.name))
        if settings.latency:
            cells.append(_cell("parts", entry.name))
            if number == 0:
                cells.append(_cell("drift", entry.name, chunk=0))
        for turn in range(settings.rounds):
            for v in mine:
                for b in settings.batch_sizes:
                    cells.append(_cell("latency", entry.name, v.name, batch=b, chunk=turn))
                    if b == 1 and settings.idle_seconds:  # a worker with nothing to do gets what has just come
                        cells.append(_cell("idle", entry.name, v.name, batch=b, chunk=turn))
        if settings.latency and number == 0:
            cells.append(_cell("drift", entry.name, chunk=1))
        if settings.quality:
            chunks = range(-(-prompts // CHUNK))
            # The exact images of all chunks come first: approximate caching starts from their latents.
            cells += [
                _cell("quality", entry.name, v.name, seed=s, chunk=c)
                for v in mine
                for s in range(settings.seeds)
                for c in chunks
            ]
    return Plan(tuple(variants), tuple(cells), tuple(left_out))


def hurried(plan: Plan) -> list[Cell]:
    """The plan's cells in the order of a run that may be cut short: what a profile cannot be without comes first.

    That is a latency of every variant, then the base's images, some prompts with all their seeds after the other,
    then all other images. It loads models more often than the plan's own order does.
    """

    def stage(cell: Cell) -> tuple[int, int]:
        if (
            cell.kind == "load"
            or (cell.kind == "latency" and cell.batch == 1 and not cell.chunk)
            or cell.key == first_drift
        ):
            return 0, 0
        if cell.kind == "quality":
            return (1, cell.chunk) if cell.variant == plan.base.name else (2, 0)
        return 3, 0

    first_drift = _cell("drift", plan.base.model, chunk=0).key
    return sorted(plan.cells, key=stage)


def _cell(kind: Kind, model: str, variant: str = "", *, batch: int = 0, seed: int = 0, chunk: int = 0) -> Cell:
    name = (variant or model).replace("/", "~")
    timed = f"--b{batch}" + (f"--r{chunk}" if chunk else "")
    tail = {
        "latency": timed,
        "idle": timed,
        "quality": f"--s{seed}--c{chunk:04d}",
        "drift": f"--{chunk}",
    }.get(kind, "")
    return Cell(f"{kind}--{name}{tail}", kind, model, variant, batch, seed, chunk)


def _variants(
    settings: Settings, entries: Sequence[ZooModel]
) -> tuple[list[PlannedVariant], list[tuple[str, str]]]:
    base = entries[0]
    known = {entry.name: entry for entry in entries}
    wanted: dict[str, list[tuple[str, bool]]] = {entry.name: [] for entry in entries}
    for name in () if settings.approximations == (NONE,) else settings.approximations or DEFAULT:
        model, slash, approximation = name.partition("/")
        if not slash:
            model, approximation = base.name, name
        if model not in known:
            raise InputError(f"{name!r}: model {model!r} is not among --models", where="--approximations")
        wanted[model].append((approximation, bool(settings.approximations)))
    variants: list[PlannedVariant] = []
    left_out: list[tuple[str, str]] = []
    for entry in entries:
        strategy = "BASE" if entry is base else "SM"
        variants.append(PlannedVariant(entry.name, entry.name, "", strategy, 0.0, entry.steps, 0))
        for name, asked_for in wanted[entry.name]:
            parsed = parse(name)
            run, reason = _possible(parsed, entry, settings.device)
            if run is None:
                if asked_for:
                    raise InputError(f"{entry.name}/{name}: {reason}", where="--approximations")
                left_out.append((f"{entry.name}/{name}", reason))
                continue
            ladder = parsed.strategy if entry is base else f"{parsed.strategy}@{entry.name}"
            full = f"{entry.name}/{name}"
            variants.append(PlannedVariant(full, entry.name, name, ladder, parsed.rank, run.steps, run.skipped))
    names = [v.name for v in variants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"{twice!r} is named twice", where="--approximations")
    return variants, left_out


def _possible(approximation: Approximation, entry: ZooModel, device: str) -> tuple[Run | None, str]:
    reason = approximation.obstacle(entry, device)
    if reason:
        return None, reason
    if {"AC", "STEPS"} <= set(approximation.strategy.split("+")):
        return None, "a cache keeps latents of the full schedule only"
    try:
        return approximation.adjust(Run(entry.steps)), ""
    except InputError as error:
        return None, error.message


def prompts_digest(prompts: pd.DataFrame) -> str:
    return hashlib.sha256("\0".join(prompts["text"]).encode()).hexdigest()[:16]


def estimate_s(plan: Plan, settings: Settings, step_s: dict[str, float], prompts: int) -> dict[str, float]:
    """Seconds by kind of cell, given the time of one denoising step of one image per model.

    Rough on purpose: text encoder and image decoder are taken as three steps, and a batch as its images in turn.
    """
    total: dict[str, float] = dict.fromkeys(("load", "parts", "latency", "idle", "drift", "quality"), 0.0)

    def allowed(run_s: float) -> float:
        return allowed_s(run_s, settings.round_seconds, longest_s(settings.device, settings.round_seconds))

    for cell in plan.cells:
        step = step_s[cell.model]
        if cell.kind == "load":
            total["load"] += settings.load_repeats * 2.0
            continue
        variant = plan.variant(cell.variant or cell.model)
        one = (variant.steps - variant.skipped + 3) * step
        if cell.kind == "quality":
            total["quality"] += one * min(CHUNK, prompts - cell.chunk * CHUNK) * 1.1
        elif cell.kind == "latency":
            total["latency"] += max(allowed(one * cell.batch), 4.0 * one * cell.batch)
        elif cell.kind == "idle":
            total["idle"] += max(allowed(one), 4.0 * (one + settings.idle_seconds))
        elif cell.kind == "drift":
            total["drift"] += max(allowed(one), 4.0 * one)
        else:
            total["parts"] += 6.0 * one
            total["parts"] += sum(
                SKIPPING_ROUNDS * (one + (v.steps - v.skipped + 3) * step) for v in plan.skipping(cell.model)
            )
    return total
