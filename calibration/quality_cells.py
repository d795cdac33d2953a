"""Quality cells: which images and latents of other cells they need, how many are made at once, what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from calibration import loads
from calibration.approximations import parse
from calibration.failures import is_out_of_memory
from calibration.plan import CHUNK, Cell, Plan, PlannedVariant, Settings
from calibration.quality import Rated, rate
from calibration.session import OnDevice
from calibration.store import NAN_IMAGES, Store


class QualityCells:
    """Does them.

    Args:
        settings, plan: What is to be done.
        prompts: The prompt table.
        similarity: The similarity table: whose latents approximate caching starts from.
        store: Where images and latents are kept.
        device: What is on the device.
        keep_images: How many prompts' images are kept for contact sheets.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        prompts: pd.DataFrame,
        similarity: pd.DataFrame,
        store: Store,
        device: OnDevice,
        keep_images: int,
    ) -> None:
        self._settings, self._plan, self._prompts = settings, plan, prompts
        self._store, self._device, self._keep_images = store, device, keep_images
        index = {prompt: i for i, prompt in enumerate(prompts["prompt"])}
        self._neighbour = [index[name] for name in similarity["neighbour"]]
        self._at_once: dict[str, int] = {}

    def missing(self, cell: Cell) -> str:
        """What the cell needs of others and is not there; "" for nothing."""
        planned = self._plan.variant(cell.variant)
        if planned.name != self._plan.base.name and not self._store.has_array(f"images--{_spot(cell)}"):
            return "there are no images of the base to compare with"
        if planned.skipped:
            chunks = {self._neighbour[position] // CHUNK for position in self._positions(cell)}
            names = [_latents(cell, planned.skipped, chunk) for chunk in sorted(chunks)]
            if not all(self._store.has_array(name) for name in names):
                return f"there are no latents of {cell.model!r} at step {planned.skipped} to start from"
        return ""

    def do(self, cell: Cell) -> tuple[dict[str, Any], pd.DataFrame | None]:
        """Make and rate the cell's images."""
        work = self._device.open(cell.model, cell.variant)
        planned = self._plan.variant(cell.variant)
        positions = self._positions(cell)
        is_base = planned.name == self._plan.base.name
        base = None if is_base else self._store.array(f"images--{_spot(cell)}")
        rated = self._in_parts(
            work,
            parse(planned.approximation),
            variant=planned.name,
            prompts=self._prompts.iloc[positions.start : positions.stop],
            first=positions.start,
            seed=cell.seed,
            judges=self._device.judges(),
            keep_latents=self._latents_wanted(planned),
            cached_latents=lambda some, step: self._cached(cell, some, step),
            base_images=None if base is None else base.astype(np.float32) / 255.0,
        )
        self._keep(cell, rated, is_base)
        at_once = {"images_at_once": self._at_once[cell.variant]}
        if rated.rows is None:
            return {"status": NAN_IMAGES, "images": rated.bad, **at_once}, None
        return {"images": len(positions), **at_once}, rated.rows

    def _positions(self, cell: Cell) -> range:
        first = cell.chunk * CHUNK
        return range(first, min(first + CHUNK, len(self._prompts)))

    def _in_parts(self, *args: Any, **options: Any) -> Rated:
        """In batches of a whole chunk, or of fewer where the device's memory ends.

        A GPU's images of another batch size differ in their last digits. So each variant has a size of its own,
        found anew by a run that goes on: it is the same then, whatever other variants needed before.
        """
        variant = options["variant"]
        size = self._at_once.setdefault(variant, CHUNK)
        while True:
            try:
                return rate(*args, batch=size, **options)
            except Exception as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
            size = self._at_once[variant] = size // 2
            loads.release(self._settings.device)

    def _keep(self, cell: Cell, rated: Rated, is_base: bool) -> None:
        for step, latents in rated.latents.items():
            self._store.put_array(_latents(cell, step, cell.chunk), latents)
        if rated.rows is None:
            return
        pixels = np.asarray(np.round(rated.images * 255.0), dtype=np.uint8)
        if is_base:
            self._store.put_array(f"images--{_spot(cell)}", pixels)
        if cell.chunk * CHUNK < self._keep_images:
            self._store.put_array(f"sheet--{cell.key}", pixels)
        if rated.features is not None:
            self._store.put_array(f"features--{cell.key}", rated.features)

    def _latents_wanted(self, planned: PlannedVariant) -> list[int]:
        if planned.approximation:
            return []
        # A cache fits the schedule it was filled by: variants of another number of steps need latents of their
        # own.
        mine = self._plan.of_model(planned.model)
        return sorted({v.skipped for v in mine if v.skipped and v.steps == planned.steps})

    def _cached(self, cell: Cell, positions: Sequence[int], step: int) -> Any:
        """What a cache holding every other prompt would answer: the nearest neighbour's latents."""
        out = []
        chunks: dict[int, Any] = {}
        for position in positions:
            chunk, at = divmod(self._neighbour[position], CHUNK)
            if chunk not in chunks:
                chunks[chunk] = self._store.array(_latents(cell, step, chunk))
            out.append(chunks[chunk][at])
        return np.stack(out)


def _spot(cell: Cell) -> str:
    return f"s{cell.seed}--c{cell.chunk:04d}"


def _latents(cell: Cell, step: int, chunk: int) -> str:
    return f"latents--{cell.model}--{step}--s{cell.seed}--c{chunk:04d}"
