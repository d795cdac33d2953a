"""What a worker process does: hold one model of the zoo and run batches of its variants.

Imported by the host for its messages only; torch is imported by :func:`prepare`, in the process.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from argus_sim.errors import InputError
from argus_sim.live.zoo import LiveZoo, Recipe
from calibration.approximations import LatentRecorder, Run, parse
from calibration.hardware import resolve_device
from calibration.latency import Workload
from calibration.loads import release, synchronise
from calibration.pipelines import default_side, load, need_torch


@dataclass(frozen=True, slots=True)
class Load:
    """Put a model on the device, in the place of the one that is there."""

    model: str


@dataclass(frozen=True, slots=True)
class Loaded:
    model: str


@dataclass(frozen=True, slots=True)
class Wish:
    """One image of a batch.

    Attributes:
        prompt, seed: What decides it.
        start: The file of stored latents that it starts from, for a variant that skips steps.
        keep: The file that its own latents are to be written to, if any.
    """

    prompt: str
    seed: int
    start: Path | None = None
    keep: Path | None = None


@dataclass(frozen=True, slots=True)
class Paint:
    """Run a batch of one variant; its model is on the device."""

    variant: int
    wishes: tuple[Wish, ...]


@dataclass(frozen=True, slots=True)
class Painted:
    """Images as PNG, in the order of the wishes; and the files that were written."""

    images: tuple[bytes, ...]
    kept: tuple[Path, ...]


def prepare(zoo: LiveZoo, worker: int) -> Callable[[Any], Any]:
    """Set a worker process up.

    Raises:
        InputError: There is no such device.
    """
    import tqdm

    torch = need_torch()
    tqdm.tqdm.set_lock(threading.RLock())  # its own is a semaphore that outlives a process that is killed
    if zoo.device == "cpu":
        torch.set_num_threads(zoo.threads)
    painter = Painter(zoo, resolve_device("cpu" if zoo.device == "cpu" else f"cuda:{worker}", None))

    def handle(message: Any) -> Any:
        match message:
            case Load(model):
                painter.load(model)
                return Loaded(model)
            case Paint(variant, wishes):
                return painter.paint(zoo.recipes[variant], wishes)
        raise TypeError(f"no message for a worker: {message!r}")

    return handle


class Painter:
    """A device with at most one model on it.

    Args:
        zoo: What there is.
        device: As PyTorch names it.
    """

    def __init__(self, zoo: LiveZoo, device: str) -> None:
        self._zoo, self._device = zoo, device
        self._work: Workload | None = None
        self._applied = ""
        self._stack = contextlib.ExitStack()

    def load(self, model: str) -> None:
        """From the weights' files to the device, as a load is calibrated; the model before is gone by then.

        Raises:
            InputError: The weights cannot be read, or make images of another size than the profile's.
        """
        zoo, entry = self._zoo, self._zoo.entries[model]
        self._stack.close()
        self._work, self._applied = None, ""
        release(self._device)
        pipe = load(entry, zoo.weights[model], device=self._device, dtype=zoo.dtype)
        side = default_side(entry, pipe)
        if side != zoo.side:
            raise InputError(
                f"{model!r} makes images of {side} pixels, the profile has {zoo.side}", where="--zoo"
            )
        synchronise(self._device)
        self._work = Workload(pipe, device=self._device, steps=entry.steps, guidance=entry.guidance, side=side)

    def paint(self, recipe: Recipe, wishes: Sequence[Wish]) -> Painted:
        """Images of one variant. Those of equal prompt, seed and stored latent are equal."""
        work = self._work
        if work is None:
            raise RuntimeError("no model is loaded")
        self._apply(work, recipe.approximation)
        run = parse(recipe.approximation).adjust(Run(work.steps))
        options: dict[str, Any] = {}
        if run.skipped:
            options["latents"] = self._stored(work, run.skipped, wishes)
        recorder = LatentRecorder(list(self._zoo.cached_steps))
        if any(wish.keep for wish in wishes):
            options["callback_on_step_end"] = recorder
        images = work.call(run, [w.prompt for w in wishes], [w.seed for w in wishes], **options)
        kept = tuple(
            _write(recorder, position, wish, self._zoo)
            for position, wish in enumerate(wishes)
            if wish.keep is not None
        )
        return Painted(tuple(_png(image) for image in images), kept)

    def _apply(self, work: Workload, approximation: str) -> None:
        """What is applied stays until another variant runs: some approximations take long to apply."""
        if approximation != self._applied:
            self._stack.close()
            self._applied = ""
            self._stack.enter_context(parse(approximation).applied(work.pipe))
            self._applied = approximation

    def _stored(self, work: Workload, step: int, wishes: Sequence[Wish]) -> Any:
        from safetensors import safe_open

        torch = need_torch()
        latents = []
        for wish in wishes:
            assert wish.start is not None
            with safe_open(str(wish.start), framework="pt") as tensors:
                latents.append(tensors.get_tensor(str(step)))
        return torch.stack(latents).to(work.device, work.pipe.dtype)


def _write(recorder: LatentRecorder, position: int, wish: Wish, zoo: LiveZoo) -> Path:
    """The latents of one image of a batch, in a file that is there whole or not at all."""
    from safetensors.torch import save_file

    assert wish.keep is not None
    tensors = {str(step): batch[position].contiguous().cpu() for step, batch in recorder.latents.items()}
    part = wish.keep.with_name(wish.keep.name + ".part")
    save_file(tensors, str(part), {"model": str(zoo.cached_model), "prompt": wish.prompt})
    os.replace(part, wish.keep)
    return wish.keep


def _png(image: Any) -> bytes:
    import numpy as np
    from PIL import Image

    if not np.isfinite(image).all():
        raise ValueError("the image holds something that is not a number")
    out = io.BytesIO()
    Image.fromarray(np.asarray(np.round(np.clip(image, 0.0, 1.0) * 255.0), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()
