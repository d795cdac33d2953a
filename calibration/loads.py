"""How long it takes to bring a model's weights to the device, and to take them off."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calibration.page_cache import drop
from calibration.pipelines import load, modules, need_torch
from calibration.weights import Weights, reading
from calibration.zoo import ZooModel


@dataclass(frozen=True, slots=True)
class FromDisk:
    """Loads from files.

    Attributes:
        seconds: Of each.
        file_bytes: That a load reads; None where none was done.
        cached: The largest share of them that was in the page cache when a load began, for all our asking to
            forget them; None where it cannot be told.
    """

    seconds: tuple[float, ...] = ()
    file_bytes: int | None = None
    cached: float | None = None


@dataclass(frozen=True, slots=True)
class Moves:
    """Observed times in seconds.

    Attributes:
        host: From host memory.
        gpu: Weights that are on the device already: what is left is a change of a pointer.
        evict: Giving the device's memory back.
        pinned: Whether the host's memory was pinned: a GPU takes it from there several times as fast.
    """

    host: tuple[float, ...]
    gpu: tuple[float, ...]
    evict: tuple[float, ...]
    pinned: bool


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        need_torch().cuda.synchronize()


def release(device: str) -> None:
    """Give back what is no longer used."""
    gc.collect()
    if device.startswith("cuda"):
        torch = need_torch()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def from_disk(entry: ZooModel, weights: Weights, *, device: str, dtype: str, repeats: int) -> FromDisk:
    """Time ``from_pretrained`` and the move to the device, each from a dropped page cache."""
    read = reading(weights, dtype)
    seconds: list[float] = []
    cached: list[float | None] = []

    def once() -> float:
        start = time.perf_counter()
        pipe = load(entry, weights, device=device, dtype=dtype)
        synchronise(device)
        seconds = time.perf_counter() - start
        del pipe
        release(device)
        return seconds

    once()  # the first of a process imports what it needs
    for _ in range(repeats):
        cached.append(drop(read.files))
        seconds.append(once())
    known = [share for share in cached if share is not None]
    return FromDisk(tuple(seconds), read.bytes, max(known) if len(known) == repeats else None)


def host_and_device(pipe: Any, *, device: str, repeats: int) -> Moves:
    """Time the moves of a pipeline that is on the device, and is there again afterwards.

    From host memory means: the weights lie in memory, pinned on a GPU's host, and are copied to fresh device
    memory. On a CPU that is a copy within memory.
    """
    torch = need_torch()
    parts = list(modules(pipe).values())
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    tensors = list({id(t): t for t in tensors}.values())
    on_gpu = device.startswith("cuda")
    staged, pinned = stage(tensors, pin=on_gpu)
    host, gpu, evict = [], [], []
    for _ in range(repeats):
        start = time.perf_counter()
        for tensor in tensors:
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        evict.append(time.perf_counter() - start)
        start = time.perf_counter()
        for tensor, source in zip(tensors, staged, strict=True):
            tensor.data = source.to(device, non_blocking=True, copy=True)
        synchronise(device)
        host.append(time.perf_counter() - start)
        start = time.perf_counter()
        pipe.to(device)  # nothing is left to move
        synchronise(device)
        gpu.append(time.perf_counter() - start)
    del staged
    _empty_host_cache()
    return Moves(tuple(host), tuple(gpu), tuple(evict), pinned)


def stage(tensors: Sequence[Any], *, pin: bool) -> tuple[list[Any], bool]:
    """Copies in host memory, and whether they are pinned; more than may be pinned is left in pageable memory."""
    torch = need_torch()
    staged: list[Any] = []
    if pin:
        try:
            for tensor in tensors:  # one by one: two copies of all of them may be more than the host has
                staged.append(torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor.detach()))
            return staged, True
        except RuntimeError:
            staged.clear()
        _empty_host_cache()
    return [tensor.detach().to("cpu", copy=True) for tensor in tensors], False


def _empty_host_cache() -> None:
    """PyTorch keeps pinned memory for later use; there is none, and a host has little of it."""
    torch: Any = need_torch()
    if hasattr(torch._C, "_host_emptyCache"):
        torch._C._host_emptyCache()
