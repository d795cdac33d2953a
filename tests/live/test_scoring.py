"""How sure the score of a live run's images is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from argus_sim.live.scoring import Scored


def scored(prompts: list[str], live: np.ndarray) -> Scored:
    n = len(prompts)
    return Scored("clip_score", "test", tuple(prompts), ("big",) * n, live, np.full(n, 80.0))


def test_images_of_other_prompts_are_independent() -> None:
    live = 80.0 + np.random.default_rng(1).normal(0.0, 5.0, 200)
    got = scored([f"p{i}" for i in range(200)], live)
    assert got.half_width == pytest.approx(1.96 * live.std(ddof=1) / math.sqrt(200) / 80.0)


def test_the_same_image_five_times_is_no_surer() -> None:
    live = 80.0 + np.random.default_rng(1).normal(0.0, 5.0, 40)
    once, five = (
        scored([f"p{i}" for i in range(40)], live),
        scored([f"p{i}" for i in range(40)] * 5, np.tile(live, 5)),
    )
    assert five.half_width == pytest.approx(once.half_width)
    assert math.isnan(scored(["p"] * 3, live[:3]).half_width)
