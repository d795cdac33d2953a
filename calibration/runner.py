"""Does the cells of a plan, one after the other, and keeps each as soon as it is done."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from calibration import loads
from calibration.approximations import parse
from calibration.failures import first_line, is_of_the_host, is_out_of_memory
from calibration.hardware import Nvml
from calibration.latency import TAIL_SAMPLES, Samples, after_idle, longest_s, measure
from calibration.pipelines import modules, need_torch, precision, weight_bytes
from calibration.plan import SKIPPING_ROUNDS, Cell, Plan, Settings, hurried
from calibration.progress import Progress
from calibration.quality_cells import QualityCells
from calibration.session import OnDevice
from calibration.store import DOES_NOT_FIT, FAILED, OK, CannotWrite, DeviceLost, Store, free_bytes
from calibration.weights import Weights, fingerprint
from calibration.zoo import ZooModel

#: A process that ended this often in the middle of the same cell was ended by it.
_FATAL = 2


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
        self._device = OnDevice(settings, plan, self._entries, weights, str(prompts["text"].iloc[0]))
        self._images = QualityCells(settings, plan, prompts, similarity, store, self._device, keep_images)
        self._progress = progress
        self._deadline = None if budget_s is None else time.monotonic() + budget_s

    def run(self) -> bool:
        """Do what is not done yet, then once more what failed in an earlier run; False when the budget ended it.

        What cannot be done is recorded as such, and the rest goes on.

        Raises:
            InputError: Nothing can be kept, or the device no longer answers.
        """
        tried: set[str] = set()
        try:
            for again in (False, True):
                done, failed = self.store.done(), self.store.failed()
                for cell in self.plan.cells if self._deadline is None else hurried(self.plan):
                    if cell.key in tried or (cell.key not in failed if again else cell.key in done):
                        continue
                    instead = self._obstacle(cell)
                    if again and instead is not None:
                        continue
                    if self._late():
                        return False
                    if instead is None:
                        tried.add(cell.key)
                    self._do(cell, instead)
        finally:
            self._device.close()
        return True

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    # ---- a cell

    def _do(self, cell: Cell, record: dict[str, Any] | None) -> None:
        """Do a cell, or keep what is to be said in its place."""
        self._progress.begin(cell)
        rows: pd.DataFrame | None = None
        with self.store.attempt(cell.key) as unfinished:
            if record is None and unfinished >= _FATAL:
                because = f"the process ended in the middle of it {unfinished} times: is there memory enough?"
                record = {"status": FAILED, "because": because}
            if record is None:
                record, rows = self._attempt(cell)
            self.store.put(cell.key, record, rows)
        self._progress.end(cell, record)

    def _attempt(self, cell: Cell) -> tuple[dict[str, Any], pd.DataFrame | None]:
        start = time.perf_counter()
        try:
            if cell.kind != "quality":
                self._device.dismiss_judges()
            record, rows = self._kinds[cell.kind](self, cell)
            return {"status": OK, **record, "took_s": time.perf_counter() - start}, rows
        except CannotWrite:
            raise
        except Exception as error:
            failure = self._failure(error)
        # Not before the error is forgotten: its traceback holds what the cell had on the device.
        self._device.close()
        if self._device.lost:
            raise DeviceLost(
                f"the device no longer answers after {cell.key} ({failure['because']}): --resume goes on"
            )
        return failure, None

    def _failure(self, error: Exception) -> dict[str, Any]:
        because = first_line(error)
        if is_out_of_memory(error):
            if self.settings.device == "cpu" or not is_of_the_host(error):
                return {"status": DOES_NOT_FIT, "because": because}
            because = f"the host's memory ended: {because}"
        return {"status": FAILED, "because": because, "traceback": traceback.format_exc()[-4000:]}

    def _obstacle(self, cell: Cell) -> dict[str, Any] | None:
        """What to record in the place of a cell that need not be tried; None where it is to be."""
        if cell.kind == "load":
            return None
        load = self.store.get(f"load--{cell.model}")
        if load is not None and load["status"] == FAILED:
            return {"status": FAILED, "because": "its model cannot be loaded"}
        smaller = [c for c in self.plan.cells if c.kind == cell.kind == "latency" and c.variant == cell.variant]
        before = [load, *(self.store.get(c.key) for c in smaller if c.batch < cell.batch)]
        if any(record is not None and record["status"] == DOES_NOT_FIT for record in before):
            return {"status": DOES_NOT_FIT, "because": "a smaller batch, or the model itself, does not"}
        missing = self._images.missing(cell) if cell.kind == "quality" else ""
        return {"status": FAILED, "because": missing} if missing else None

    # ---- kinds of cells

    def _load(self, cell: Cell) -> tuple[dict[str, Any], None]:
        settings, entry = self.settings, self._entries[cell.model]
        self._device.close()
        dtype = precision(entry, settings.dtype, settings.device)
        weights = self._device.fetched(cell.model)
        if weights.origin == "random":
            disk = self._through_the_disk(entry, dtype)
        else:
            disk = loads.from_disk(
                entry, weights, device=settings.device, dtype=dtype, repeats=settings.load_repeats
            )
        work = self._device.open(cell.model)
        moves = loads.host_and_device(work.pipe, device=settings.device, repeats=settings.load_repeats)
        parts = {name: sum(p.numel() for p in part.parameters()) for name, part in modules(work.pipe).items()}
        record: dict[str, Any] = {
            "disk_s": disk.seconds, "host_s": moves.host, "gpu_s": moves.gpu, "evict_s": moves.evict,
            "weight_bytes": weight_bytes(work.pipe), "file_bytes": disk.file_bytes, "cached": disk.cached,
            "pinned": moves.pinned, "parameters": parts, "side": work.side, "steps": work.steps,
            "guidance": work.guidance, "scheduler": type(work.pipe.scheduler).__name__,
            "dtype": dtype, "weights": fingerprint(weights, dtype),
        }  # fmt: skip
        return record, None

    def _through_the_disk(self, entry: ZooModel, dtype: str) -> loads.FromDisk:
        """Random weights are written once to be read: how long a disk takes does not depend on what they are."""
        folder = self.store.folder / "work" / "weights"
        pipe = self._device.open(entry.name).pipe
        if free_bytes(self.store.folder) < 1.2 * weight_bytes(pipe) + 1e9:
            return loads.FromDisk()
        try:
            pipe.save_pretrained(folder)
            # A device may hold the model once, not twice.
            del pipe
            self._device.close()
            return loads.from_disk(
                replace(entry, folder=folder), Weights("folder", str(folder)), device=self.settings.device,
                dtype=dtype, repeats=self.settings.load_repeats,
            )  # fmt: skip
        except OSError:
            return loads.FromDisk()
        finally:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)

    def _parts(self, cell: Cell) -> tuple[dict[str, Any], None]:
        work = self._device.open(cell.model)
        work.parts(1, repeats=1)  # warm-up
        parts = work.parts(1, repeats=5)
        skipped = {v.name: parse(v.approximation) for v in self.plan.skipping(cell.model)}
        skipping = work.skipping(skipped, rounds=SKIPPING_ROUNDS)
        return {**{name: getattr(parts, name) for name in parts.__slots__}, "skipping": skipping}, None

    def _latency(self, cell: Cell) -> tuple[dict[str, Any], None]:
        work = self._device.open(cell.model, cell.variant)
        planned = self.plan.variant(cell.variant)
        cuda = need_torch().cuda if self.settings.device.startswith("cuda") else None
        if cuda is not None:
            loads.release(self.settings.device)  # what an earlier cell reserved is not this one's
            cuda.reset_peak_memory_stats()
        once = work.timed(parse(planned.approximation), cell.batch)
        samples, energy_j, clocks = self._measured(once)
        record = {
            **samples.row(), "energy_j": energy_j, "warm_up": samples.warm_up,
            "memory_bytes": weight_bytes(work.pipe) if cuda is None else cuda.max_memory_allocated(),
            "reserved_bytes": None if cuda is None else cuda.max_memory_reserved(),
            "steady": samples.steady, "half_width": samples.half_width, "drift": samples.drift, "side": work.side,
            "clocks": clocks, "decoded_in_turn": work.decodes_in_turn(cell.batch), "seconds": samples.seconds,
        }  # fmt: skip
        return record, None

    def _idle(self, cell: Cell) -> tuple[dict[str, Any], None]:
        work = self._device.open(cell.model, cell.variant)
        once = work.timed(parse(self.plan.variant(cell.variant).approximation), cell.batch)
        samples, _, clocks = self._measured(after_idle(once, self.settings.idle_seconds))
        record = {
            **samples.row(), "idle_s": self.settings.idle_seconds, "half_width": samples.half_width,
            "side": work.side, "clocks": clocks, "seconds": samples.seconds,
        }  # fmt: skip
        return record, None

    def _measured(self, once: Callable[[], float]) -> tuple[Samples, float | None, dict[str, Any]]:
        """Samples of one round, joules per run of them, and the GPU's clocks and temperature at their end."""
        device, budget = self.settings.device, self.settings.round_seconds
        before: list[float | None] = []
        with Nvml(device) as nvml:
            samples = measure(
                once,
                budget_s=budget,
                longest=longest_s(device, budget),
                tail=-(-TAIL_SAMPLES // self.settings.rounds),
                sampling=lambda: before.append(nvml.energy_j()),  # warm-up is left out, and with it compilation
            )
            clocks, after = nvml.now(), nvml.energy_j()
        if before[0] is None or after is None or after == before[0]:  # a counter that has not moved tells nothing
            return samples, None, clocks
        return samples, (after - before[0]) / len(samples.seconds), clocks

    def _drift(self, cell: Cell) -> tuple[dict[str, Any], None]:
        """The same work at the start and at the end: has the device become slower?"""
        work = self._device.open(cell.model, cell.model)
        samples, _, clocks = self._measured(work.timed(parse(""), 1))
        return {"median_s": samples.median_s, "half_width": samples.half_width, **clocks}, None

    def _quality(self, cell: Cell) -> tuple[dict[str, Any], pd.DataFrame | None]:
        return self._images.do(cell)

    _kinds: dict[str, Callable[[Calibration, Cell], tuple[dict[str, Any], pd.DataFrame | None]]] = {
        "load": _load,
        "parts": _parts,
        "latency": _latency,
        "idle": _idle,
        "drift": _drift,
        "quality": _quality,
    }
