"""Making the system forget files, so that a load from disk is one, and asking whether it has."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def drop(files: Sequence[Path]) -> float | None:
    """Ask the system to forget files; the share of their bytes that it holds all the same.

    None where it cannot be told. What was written and is not on the disk yet is never forgotten, so that comes
    first.
    """
    for file in files:
        with contextlib.suppress(OSError, AttributeError), open(file, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    held = total = 0.0
    for file in files:
        share = resident(file)
        if share is None:
            return None
        size = file.stat().st_size
        held, total = held + share * size, total + size
    return held / total if total else None


def resident(file: Path) -> float | None:
    """Share of a file that is in the page cache; None where the system does not tell."""
    size = file.stat().st_size
    if not size:
        return 0.0
    try:
        mincore = ctypes.CDLL(None).mincore
        there = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        with open(file, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
            address = np.frombuffer(view, np.uint8).ctypes.data
            failed = mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), there)
    except (OSError, AttributeError, TypeError):
        return None
    return None if failed else float((np.frombuffer(there, np.uint8) & 1).mean())
