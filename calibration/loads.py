"""How long it takes to bring a model's weights to the device, and to take them off."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.pipelines import Weights, load, modules, need_torch
from calibration.zoo import ZooModel


@dataclass(frozen=True, slots=True)
class Loads:
    """Observed times in seconds.

    Attributes:
        disk: From files that are not in the page cache, as far as the system lets us drop them.
        host: From (pinned) host memory.
        gpu: Weights that are on the device already: what is left is a change of a pointer.
        evict: Giving the device's memory back.
    """

    disk: tuple[float, ...]
    host: tuple[float, ...]
    gpu: tuple[float, ...]
    evict: tuple[float, ...]


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


def from_disk(entry: ZooModel, weights: Weights, *, device: str, dtype: str, repeats: int) -> tuple[float, ...]:
    """Seconds of ``from_pretrained`` and the move to the device, each from a dropped page cache."""
    seconds = []
    for _ in range(repeats):
        drop_page_cache(entry, weights)
        start = time.perf_counter()
        pipe = load(entry, weights, device=device, dtype=dtype)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
        del pipe
        release(device)
    return tuple(seconds)


def drop_page_cache(entry: ZooModel, weights: Weights) -> None:
    """Ask the system to forget the weights' files. Where it cannot, a load from disk is one from the cache."""
    folder = Path(weights.path)
    if weights.origin == "cache":
        import huggingface_hub

        with contextlib.suppress(Exception):
            folder = Path(huggingface_hub.snapshot_download(weights.path, local_files_only=True))
    if not folder.is_dir() or not hasattr(os, "posix_fadvise"):
        return
    for file in folder.rglob("*.safetensors"):
        with contextlib.suppress(OSError), open(file, "rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def host_and_device(pipe: Any, *, device: str, repeats: int) -> tuple[tuple[float, ...], ...]:
    """``(host, gpu, evict)`` seconds of a pipeline that is on the device, and is there again afterwards.

    From host memory means: the weights lie in memory, pinned on a GPU's host, and are copied to fresh device
    memory. On a CPU that is a copy within memory.
    """
    torch = need_torch()
    parts = list(modules(pipe).values())
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    tensors = list({id(t): t for t in tensors}.values())
    staged = [t.detach().to("cpu", copy=True) for t in tensors]
    on_gpu = device.startswith("cuda")
    if on_gpu:
        with contextlib.suppress(RuntimeError):  # more than may be pinned: then it is pageable memory
            staged = [t.pin_memory() for t in staged]
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
    return tuple(host), tuple(gpu), tuple(evict)
