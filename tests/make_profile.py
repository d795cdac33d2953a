"""Small profiles for tests: what they hold is given by the test, not by a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from argus_sim.profile import Manifest, Profile
from argus_sim.profile.changes import ProfileChanges
from argus_sim.provenance import Provenance


def make_profile(
    latency_s: Mapping[str, Mapping[int, float]],
    *,
    quality: Mapping[str, float] | None = None,
    std_s: float = 0.0,
    loads_s: Mapping[str, float] | None = None,
    after_idle_s: Mapping[str, Mapping[float, float]] | None = None,
    prompts: int = 20,
    spread: float = 0.0,
    distribution: str = "deterministic",
    seed: int = 0,
    name: str = "test",
) -> Profile:
    """A profile of the given variants; the first is the base.

    Args:
        latency_s: Variant name -> batch size -> mean latency. ``model/ac-K`` skips K of 50 steps and is on ladder
            AC; ``model`` other than the base's is on ladder SM; in the order given.
        quality: Mean quality of each variant; 1 - 0.02 x position by default.
        after_idle_s: Variant name -> idleness -> mean latency of a batch of one after it.
        spread: Standard deviation of the quality over prompts.
    """
    names = list(latency_s)
    models = list(dict.fromkeys(n.split("/")[0] for n in names))
    rng = np.random.default_rng(seed)
    levels = {"AC": 0, "SM": 0}
    variants = []
    for n in names:
        strategy = "BASE" if n == names[0] else "AC" if "/ac-" in n else "SM"
        if strategy != "BASE":
            levels[strategy] += 1
        skipped = int(n.split("/ac-")[1]) if "/ac-" in n else 0
        level = levels.get(strategy, 0)
        variants.append((n, n.split("/")[0], strategy, level, 50, skipped, None))
    mean_quality = quality or {n: 1.0 - 0.02 * i for i, n in enumerate(names)}
    prompt_ids = [f"p{i}" for i in range(prompts)]
    scores = [
        (p, n, "score", max(0.01, mean_quality[n] + spread * float(rng.standard_normal())), 0)
        for n in names
        for p in prompt_ids
    ]
    synthetic = (Provenance(kind="synthetic", source="tests/make_profile.py"),)
    tables = {
        "variants": pd.DataFrame(
            variants,
            columns=["variant", "model", "strategy", "level", "steps", "skipped_steps", "memory_bytes"],
        ),
        "latency": pd.DataFrame(
            [(n, b, 64, 64, 1, s, std_s * s) for n, cells in latency_s.items() for b, s in cells.items()],
            columns=["variant", "batch_size", "width", "height", "samples", "mean_s", "std_s"],
        ),
        "loads": pd.DataFrame(
            [(m, "disk", (loads_s or {}).get(m, 10.0), 1) for m in models],
            columns=["model", "source", "seconds", "bytes"],
        ),
        "prompts": pd.DataFrame(
            [(p, f"a prompt number {i}", "train" if i % 2 else "test") for i, p in enumerate(prompt_ids)],
            columns=["prompt", "text", "split"],
        ),
        "quality": pd.DataFrame(scores, columns=["prompt", "variant", "metric", "score", "seed"]),
    }
    if any("/ac-" in n for n in names):
        tables["similarity"] = pd.DataFrame(
            {"prompt": prompt_ids, "neighbour": prompt_ids, "similarity": rng.uniform(0.5, 1.0, prompts)}
        )
    if after_idle_s is not None:
        tables["after_idle"] = pd.DataFrame(
            [(n, 1, 64, 64, i, s, std_s * s) for n, cells in after_idle_s.items() for i, s in cells.items()],
            columns=["variant", "batch_size", "width", "height", "idle_s", "mean_s", "std_s"],
        )
    manifest = Manifest(
        name=name,
        description="made for a test",
        gpu="none",
        resolution=(64, 64),
        seeds=(0,),
        base=names[0],
        metric="score",
        service_distribution=distribution,
        provenance=dict.fromkeys(tables, synthetic),
    )
    return Profile.from_tables(manifest, tables)


def ladder(models: Sequence[str] = ("big", "small"), batches: Sequence[int] = (1, 2)) -> Profile:
    """Two models and an AC ladder of three on the first; batching gains 1.5."""
    cells = {"big": 4.0, "big/ac-10": 3.2, "big/ac-25": 2.0} | dict.fromkeys(models[1:], 1.0)
    return make_profile(
        {n: {b: s if b == 1 else s * b / 1.5 for b in batches} for n, s in cells.items()}, spread=0.05
    )


def at_speed(profile: Profile, speed: float) -> Profile:
    """The same on GPUs of that speed."""
    return ProfileChanges(latency_factor=1.0 / speed).apply(profile)
