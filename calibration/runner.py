"""Does the cells of a plan, one after the other, and keeps each as soon as it is done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from argus_sim.errors import InputError
from calibration import loads, scorers
from calibration.approximations import parse
from calibration.hardware import Nvml
from calibration.latency import Samples, Workload, measure
from calibration.pipelines import (
    Weights,
    default_side,
    folder_bytes,
    is_out_of_memory,
    load,
    modules,
    need_torch,
    weight_bytes,
)
from calibration.plan import CHUNK, SKIPPING_ROUNDS, Cell, Plan, PlannedVariant, Settings
from calibration.quality import Rated, rate
from calibration.store import DOES_NOT_FIT, NAN_IMAGES, OK, Store, free_bytes
from calibration.zoo import ZooModel


class Progress(Protocol):
    """Who wants to know how far it is."""

    def begin(self, cell: Cell) -> None: ...

    def end(self, cell: Cell, record: dict[str, Any]) -> None: ...


@dataclass
class _Session:
    """The model on the device, and the approximation that is applied to it."""

    entry: ZooModel
    work: Workload
    stack: contextlib.ExitStack
    variant: str = ""


class Calibration:
    """A plan being carried out.

    Args:
        settings, plan: What to do.
        entries: The models, by name.
        weights: Where each one's weights are.
        prompts: The prompt table.
        similarity: The similarity table: whose latents approximate caching starts from.
        store: Where cells are kept; entered.
        progress: Hears about every cell.
        budget_s: Wall-clock time after which no further cell is begun; None for no limit.
        keep_images: How many prompts' images are kept for contact sheets.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        entries: Sequence[ZooModel],
        weights: dict[str, Weights],
        prompts: pd.DataFrame,
        similarity: pd.DataFrame,
        store: Store,
        *,
        progress: Progress,
        budget_s: float | None = None,
        keep_images: int = 0,
    ) -> None:
        self.settings, self.plan, self.store = settings, plan, store
        self._entries = {entry.name: entry for entry in entries}
        self._weights, self._prompts = weights, prompts
        index = {prompt: i for i, prompt in enumerate(prompts["prompt"])}
        self._neighbour = [index[name] for name in similarity["neighbour"]]
        self._progress, self._keep_images = progress, keep_images
        self._deadline = None if budget_s is None else time.monotonic() + budget_s
        self._judges: list[scorers.Scorer] | None = None
        self._session: _Session | None = None
        self._images_at_once = CHUNK

    def run(self) -> bool:
        """Do what is not done yet; False when the budget ended it. Cells that cannot be are recorded as such."""
        done = self.store.done()
        try:
            for cell in self.plan.cells:
                if cell.key in done:
                    continue
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    return False
                self._progress.begin(cell)
                record, rows = self._attempt(cell)
                self.store.put(cell.key, record, rows)
                self._progress.end(cell, record)
        finally:
            self._close()
        return True

    # ---- cells

    def _attempt(self, cell: Cell) -> tuple[dict[str, Any], pd.DataFrame | None]:
        if self._known_not_to_fit(cell):
            return {"status": DOES_NOT_FIT, "because": "a smaller batch, or the model itself, does not"}, None
        start = time.perf_counter()
        try:
            record, rows = self._kinds[cell.kind](self, cell)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._close()
            return {"status": DOES_NOT_FIT, "because": str(error).splitlines()[0][:200]}, None
        return {"status": OK, **record, "took_s": time.perf_counter() - start}, rows

    def _known_not_to_fit(self, cell: Cell) -> bool:
        """Whether what is smaller did not fit, so that trying again would only take time."""

        def failed(kind: str, variant: str, batch: int) -> bool:
            for other in self.plan.cells:
                if (
                    other.kind == kind
                    and other.model == cell.model
                    and (other.variant, other.batch) == (variant, batch)
                ):
                    record = self.store.get(other.key)
                    return record is not None and record["status"] == DOES_NOT_FIT
            return False

        if cell.kind != "load" and failed("load", "", 0):
            return True
        smaller = [b for b in self.settings.batch_sizes if b < cell.batch]
        return cell.kind == "latency" and any(failed("latency", cell.variant, b) for b in smaller)

    def _load(self, cell: Cell) -> tuple[dict[str, Any], None]:
        settings, entry, weights = self.settings, self._entries[cell.model], self._weights[cell.model]
        self._close()
        repeats = settings.load_repeats
        disk: tuple[float, ...] = ()
        if weights.origin != "random":
            disk = loads.from_disk(entry, weights, device=settings.device, dtype=settings.dtype, repeats=repeats)
        session = self._open(cell.model)
        size = weight_bytes(session.work.pipe)
        if weights.origin == "random":
            disk = self._load_from_scratch(entry, session.work.pipe, size)
        host, gpu, evict = loads.host_and_device(session.work.pipe, device=settings.device, repeats=repeats)
        parts = {
            name: sum(p.numel() for p in part.parameters()) for name, part in modules(session.work.pipe).items()
        }
        record: dict[str, Any] = {
            "disk_s": disk, "host_s": host, "gpu_s": gpu, "evict_s": evict, "weight_bytes": size,
            "parameters": parts, "side": session.work.side, "steps": session.work.steps,
            "guidance": session.work.guidance, "scheduler": type(session.work.pipe.scheduler).__name__,
        }  # fmt: skip
        if weights.origin == "folder":
            record["file_bytes"] = folder_bytes(Path(weights.path))
        return record, None

    def _load_from_scratch(self, entry: ZooModel, pipe: Any, size: int) -> tuple[float, ...]:
        """Random weights are written once to be read: how long a disk takes does not depend on what they are."""
        if free_bytes(self.store.folder) < 1.2 * size + 1e9:
            return ()
        folder = self.store.folder / "work" / "weights"
        try:
            pipe.save_pretrained(folder)
            self._close()
            saved = replace(entry, folder=folder)
            seconds = loads.from_disk(
                saved, Weights("folder", str(folder)), device=self.settings.device, dtype=self.settings.dtype,
                repeats=self.settings.load_repeats,
            )  # fmt: skip
        except OSError:
            seconds = ()
        finally:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
        self._open(entry.name)
        return seconds

    def _parts(self, cell: Cell) -> tuple[dict[str, Any], None]:
        work = self._open(cell.model).work
        work.parts(1, repeats=1)  # warm-up
        parts = work.parts(1, repeats=5)
        skipped = {v.name: parse(v.approximation) for v in self.plan.skipping(cell.model)}
        skipping = work.skipping(skipped, rounds=SKIPPING_ROUNDS)
        return {**{name: getattr(parts, name) for name in parts.__slots__}, "skipping": skipping}, None

    def _latency(self, cell: Cell) -> tuple[dict[str, Any], None]:
        session = self._open(cell.model, cell.variant)
        planned = self.plan.variant(cell.variant)
        torch = need_torch()
        on_gpu = self.settings.device.startswith("cuda")
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        once = session.work.timed(parse(planned.approximation), cell.batch)
        samples, energy_j = self._measured(once)
        memory = torch.cuda.max_memory_allocated() if on_gpu else weight_bytes(session.work.pipe)
        record = {
            **samples.row(), "energy_j": energy_j, "memory_bytes": memory, "warm_up": samples.warm_up,
            "steady": samples.steady, "half_width": samples.half_width, "drift": samples.drift,
            "side": session.work.side,
        }  # fmt: skip
        return record, None

    def _measured(self, once: Callable[[], float]) -> tuple[Samples, float | None]:
        """Samples, and joules per run (warm-up included: it is the same work)."""
        runs = 0

        def counted() -> float:
            nonlocal runs
            runs += 1
            return once()

        with Nvml(self.settings.device) as nvml:
            before = nvml.energy_j()
            samples = measure(counted, budget_s=self.settings.cell_seconds)
            after = nvml.energy_j()
        return samples, None if before is None or after is None else (after - before) / runs

    def _drift(self, cell: Cell) -> tuple[dict[str, Any], None]:
        """The same work at the start and at the end: has the device become slower?"""
        work = self._open(cell.model, cell.model).work
        samples, _ = self._measured(work.timed(parse(""), 1))
        with Nvml(self.settings.device) as nvml:
            return {"median_s": samples.median_s, "half_width": samples.half_width, **nvml.facts()}, None

    def _quality(self, cell: Cell) -> tuple[dict[str, Any], pd.DataFrame | None]:
        session = self._open(cell.model, cell.variant)
        planned = self.plan.variant(cell.variant)
        first = cell.chunk * CHUNK
        prompts = self._prompts.iloc[first : first + CHUNK]
        is_base = planned.name == self.plan.base.name
        spot = f"s{cell.seed}--c{cell.chunk:04d}"
        base = None if is_base else self.store.array(f"images--{spot}")
        rated = self._rated_in_parts(
            session.work,
            parse(planned.approximation),
            variant=planned.name,
            prompts=prompts,
            first=first,
            seed=cell.seed,
            judges=self._scorers(),
            keep_latents=self._latents_wanted(planned),
            cached_latents=lambda positions, step: self._cached(cell, positions, step),
            base_images=None if base is None else base.astype(np.float32) / 255.0,
        )
        self._keep(cell, planned, rated, is_base, spot)
        if rated.rows is None:
            return {"status": NAN_IMAGES, "images": rated.bad}, None
        return {"images": len(prompts)}, rated.rows

    def _rated_in_parts(self, *args: Any, **options: Any) -> Rated:
        """In batches of a whole chunk, or of fewer where the device's memory ends: images are the same."""
        while True:
            try:
                return rate(*args, batch=self._images_at_once, **options)
            except Exception as error:
                if not is_out_of_memory(error) or self._images_at_once == 1:
                    raise
                self._images_at_once //= 2
            loads.release(self.settings.device)

    def _keep(self, cell: Cell, planned: PlannedVariant, rated: Rated, is_base: bool, spot: str) -> None:
        for step, latents in rated.latents.items():
            self.store.put_array(f"latents--{cell.model}--{step}--{spot}", latents)
        if rated.rows is None:
            return
        pixels = np.asarray(np.round(rated.images * 255.0), dtype=np.uint8)
        if is_base:
            self.store.put_array(f"images--{spot}", pixels)
        if cell.chunk * CHUNK < self._keep_images:
            self.store.put_array(f"sheet--{cell.key}", pixels)
        if rated.features is not None:
            self.store.put_array(f"features--{cell.key}", rated.features)

    def _latents_wanted(self, planned: PlannedVariant) -> list[int]:
        if planned.approximation:
            return []
        # A cache fits the schedule it was filled by: variants of another number of steps need latents of their
        # own.
        mine = self.plan.of_model(planned.model)
        return sorted({v.skipped for v in mine if v.skipped and v.steps == planned.steps})

    def _cached(self, cell: Cell, positions: Sequence[int], step: int) -> Any:
        """What a cache holding every other prompt would answer: the nearest neighbour's latents."""
        out = []
        chunks: dict[int, Any] = {}
        for position in positions:
            chunk, at = divmod(self._neighbour[position], CHUNK)
            if chunk not in chunks:
                chunks[chunk] = self.store.array(f"latents--{cell.model}--{step}--s{cell.seed}--c{chunk:04d}")
                if chunks[chunk] is None:
                    raise InputError(
                        f"latents of {cell.model!r} at step {step} are gone: delete the run and start again",
                        where=str(self.store.folder),
                    )
            out.append(chunks[chunk][at])
        return np.stack(out)

    _kinds: dict[str, Callable[[Calibration, Cell], tuple[dict[str, Any], pd.DataFrame | None]]] = {
        "load": _load,
        "parts": _parts,
        "latency": _latency,
        "drift": _drift,
        "quality": _quality,
    }

    # ---- what is on the device

    def _scorers(self) -> list[scorers.Scorer]:
        if self._judges is None:
            self._judges = [scorers.build(name, device=self.settings.device) for name in self.settings.scorers]
        return self._judges

    def _open(self, model: str, variant: str = "") -> _Session:
        """The model on the device with the variant's approximation applied, whatever was there before."""
        if self._session is not None and self._session.entry.name != model:
            self._close()
        if self._session is None:
            entry, settings = self._entries[model], self.settings
            pipe = load(entry, self._weights[model], device=settings.device, dtype=settings.dtype)
            side = default_side(entry, pipe)
            work = Workload(pipe, device=settings.device, steps=entry.steps, guidance=entry.guidance, side=side)
            work.prompt = str(self._prompts["text"].iloc[0])
            self._session = _Session(entry, work, contextlib.ExitStack())
        wanted = variant or model
        if self._session.variant != wanted:
            self._session.stack.close()
            approximation = parse(self.plan.variant(wanted).approximation)
            self._session.stack.enter_context(approximation.applied(self._session.work.pipe))
            self._session.variant = wanted
        return self._session

    def _close(self) -> None:
        if self._session is not None:
            self._session.stack.close()
            self._session = None
        loads.release(self.settings.device)
