"""Calibrations of tiny models, by the folder of weights that the fixture ``zoo`` makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.measure import carry_out, prepare
from calibration.progress import Progress, Silent
from calibration.wishes import Wishes

PROMPTS = 10  # two chunks


def wishes(folder: Path, out: Path, /, **more: Any) -> Wishes:
    common: dict[str, Any] = {
        "models": (f"big={folder / 'big'}",),
        "device": "cpu",
        "approximations": ("ac-3", "ac-6", "steps-6"),
        "batch_sizes": (1, 2),
        "steps": 10,
        "prompts": str(PROMPTS),
        "seeds": 1,
        "scorers": (f"clip={folder / 'judge'}",),
        "out": out,
        "cell_seconds": 0.01,
    }
    return Wishes(**common | more)


def calibrate(w: Wishes, progress: Progress | None = None) -> Any:
    return carry_out(prepare(w, lambda text: None), w, progress or Silent())


def cells(out: Path) -> dict[str, int]:
    """Cell -> when it was written."""
    folder = out.with_name(out.name + ".run") / "cells"
    return {file.stem: file.stat().st_mtime_ns for file in sorted(folder.glob("*.json"))}
