"""What a worker process does: hold one model of the zoo and run batches of its variants.

Imported by the host for its messages only; torch is imported by :func:`prepare`, in the process.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from argus_sim.errors import InputError
from argus_sim.live.zoo import LiveZoo, Recipe
from calibration.approximations import LatentRecorder, Run, parse
from calibration.hardware import resolve_device
from calibration.latency import Workload, after_idle, measure
from calibration.loads import release, synchronise
from calibration.pipelines import default_side, denoiser, load, need_torch


@dataclass(frozen=True, slots=True)
class Load:
    """Put a model on the device, in the place of the one that is there."""

    model: str


@dataclass(frozen=True, slots=True)
class Loaded:
    model: str


@dataclass(frozen=True, slots=True)
class Carried:
    """A file with its content, for a worker that may be on a machine without the file."""

    file: Path
    content: bytes


@dataclass(frozen=True, slots=True)
class Wish:
    """One image of a batch.

    Attributes:
        prompt, seed: What decides it.
        start: The stored latents that it starts from, for a variant that skips steps.
        keep: The file that its own latents are to be written to, if any.
    """

    prompt: str
    seed: int
    start: Path | Carried | None = None
    keep: Path | None = None


@dataclass(frozen=True, slots=True)
class Paint:
    """Run a batch of one variant; its model is on the device.

    Attributes:
        carry: New latents come with the answer; otherwise they are written to their files.
    """

    variant: int
    wishes: tuple[Wish, ...]
    carry: bool = False


@dataclass(frozen=True, slots=True)
class Painted:
    """A batch is done.

    Attributes:
        images: PNG, in the order of the wishes; None for one that holds something that is not a number.
        kept: The files that were written, or that are to be.
        unreadable: Files of stored latents that could not be read; the batch was then made in full.
    """

    images: tuple[bytes | None, ...]
    kept: tuple[Path | Carried, ...] = ()
    unreadable: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Time:
    """Run batches of a variant again and again, as calibration does; its model is on the device.

    Attributes:
        size: Images in a batch.
        budget_s: Real seconds after which no further batch is begun.
        idle_s: The pause before each batch.
    """

    variant: int
    size: int
    budget_s: float
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Timed:
    """How long each batch took, warm-up left out."""

    seconds: tuple[float, ...]


def prepare(zoo: LiveZoo, gpu: int) -> Callable[[Any], Any]:
    """Set a worker process up.

    Args:
        gpu: Its number among those that the process sees; no matter on a CPU.

    Raises:
        InputError: There is no such device.
    """
    import tqdm

    torch = need_torch()
    tqdm.tqdm.set_lock(threading.RLock())  # its own is a semaphore that outlives a process that is killed
    if zoo.device == "cpu":
        torch.set_num_threads(zoo.threads)
    painter = Painter(zoo, resolve_device("cpu" if zoo.device == "cpu" else f"cuda:{gpu}", None))

    def handle(message: Any) -> Any:
        match message:
            case Load(model):
                painter.load(model)
                return Loaded(model)
            case Paint(variant, wishes, carry):
                return painter.paint(zoo.recipes[variant], wishes, carry)
            case Time(variant, size, budget_s, idle_s):
                return painter.time(zoo.recipes[variant], size, budget_s, idle_s)
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
        self._work = Workload(
            pipe, device=self._device, steps=entry.steps, guidance=entry.guidance, side=side,
            options=entry.options,
        )  # fmt: skip

    def paint(self, recipe: Recipe, wishes: Sequence[Wish], carry: bool = False) -> Painted:
        """Images of one variant. Those of equal prompt, seed and stored latent are equal."""
        work = self._work
        if work is None:
            raise RuntimeError("no model is loaded")
        options: dict[str, Any] = {}
        if recipe.skipped:
            stored, unreadable = _read(recipe.skipped, wishes)
            if unreadable:
                in_full = replace(recipe, approximation="", skipped=0)
                return replace(self.paint(in_full, wishes, carry), unreadable=unreadable)
            options["latents"] = need_torch().stack(stored).to(work.device, denoiser(work.pipe).dtype)
        self._apply(work, recipe.approximation)
        run = parse(recipe.approximation).adjust(Run(work.steps))
        recorder = LatentRecorder(list(self._zoo.cached_steps))
        if any(wish.keep for wish in wishes):
            options["callback_on_step_end"] = recorder
        made = work.call(run, [w.prompt for w in wishes], [w.seed for w in wishes], **options)
        images = tuple(map(_png, made))
        kept: list[Path | Carried] = []
        for position, wish in enumerate(wishes):
            if wish.keep is None or images[position] is None:  # its latents are spoilt, too
                continue
            content = self._latents(recorder, position, wish.prompt)
            if carry:
                kept.append(Carried(wish.keep, content))
            elif write(wish.keep, content):
                kept.append(wish.keep)
        return Painted(images, tuple(kept))

    def _latents(self, recorder: LatentRecorder, position: int, prompt: str) -> bytes:
        """Those of one image of a batch, as a file's content."""
        from safetensors.torch import save

        tensors = {str(step): batch[position].contiguous().cpu() for step, batch in recorder.latents.items()}
        content: bytes = save(tensors, {"model": str(self._zoo.cached_model), "prompt": prompt})
        return content

    def time(self, recipe: Recipe, size: int, budget_s: float, idle_s: float = 0.0) -> Timed:
        """What calibration would measure of a variant, in this very process."""
        work = self._work
        if work is None:
            raise RuntimeError("no model is loaded")
        self._apply(work, recipe.approximation)
        once = work.timed(parse(recipe.approximation), size)
        return Timed(measure(after_idle(once, idle_s) if idle_s else once, budget_s=budget_s).seconds)

    def _apply(self, work: Workload, approximation: str) -> None:
        """What is applied stays until another variant runs: some approximations take long to apply."""
        if approximation != self._applied:
            self._stack.close()
            self._applied = ""
            self._stack.enter_context(parse(approximation).applied(work.pipe))
            self._applied = approximation


def _read(step: int, wishes: Sequence[Wish]) -> tuple[list[Any], tuple[Path, ...]]:
    """The stored latents of that step, and the files where there are none."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load as load_all

    latents: list[Any] = []
    unreadable: list[Path] = []
    for wish in wishes:
        start = wish.start
        assert start is not None
        try:
            if isinstance(start, Carried):
                latents.append(load_all(start.content)[str(step)])
            else:
                with safe_open(str(start), framework="pt") as tensors:
                    latents.append(tensors.get_tensor(str(step)))
        except (OSError, SafetensorError, KeyError):
            unreadable.append(start.file if isinstance(start, Carried) else start)
    return latents, tuple(unreadable)


def write(file: Path, content: bytes) -> bool:
    """Make a file that is there whole, or not at all and False."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, file)
    except OSError:
        return False
    return True


def _png(image: Any) -> bytes | None:
    import numpy as np
    from PIL import Image

    if not np.isfinite(image).all():
        return None
    out = io.BytesIO()
    Image.fromarray(np.asarray(np.round(np.clip(image, 0.0, 1.0) * 255.0), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()
