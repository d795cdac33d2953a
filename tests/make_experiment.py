"""A small experiment on disk: a profile of four variants, a minute of arrivals, two policies, two seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.make_profile import ladder


def content() -> dict[str, Any]:
    """What the YAML of the experiment says; a test changes what it is about."""
    return {
        "name": "small",
        "seed": 3,
        "replications": 2,
        "profile": "./profile",
        "traces": [{"name": "rush", "generate": {"kind": "poisson", "duration_s": 60, "rate_per_min": 60}}],
        "policies": ["static", "argus"],
        "cluster": {"workers": 2},
    }


def write_experiment(folder: Path, data: dict[str, Any] | None = None, name: str = "small.yaml") -> Path:
    """Write the profile and the experiment's YAML; returns the latter."""
    if not (folder / "profile").exists():
        ladder().save(folder / "profile")
    path = folder / name
    path.write_text(yaml.safe_dump(content() if data is None else data, sort_keys=False))
    return path
