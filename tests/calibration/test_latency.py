"""Timing: when it stops, what it reports, and that the parts add up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibration import details, latency
from calibration.approximations import Run
from calibration.latency import Samples, Workload, after_idle, longest_s, measure, median_half_width
from calibration.zoo import model


class FakeTime:
    """Every run takes what the script says, and moves the clock by it."""

    def __init__(self, seconds: Iterator[float]) -> None:
        self.seconds, self.now, self.runs = seconds, 0.0, 0

    def once(self) -> float:
        took = next(self.seconds)
        self.now += took
        self.runs += 1
        return took


def timed(seconds: Iterator[float], budget_s: float, longest: float = 0.0) -> tuple[Samples, FakeTime]:
    fake = FakeTime(seconds)
    return measure(fake.once, budget_s=budget_s, longest=longest, now=lambda: fake.now), fake


def test_stops_when_the_median_is_known() -> None:
    samples, fake = timed(itertools.repeat(1.0), budget_s=1e9)
    assert samples.steady
    assert samples.half_width == 0.0
    assert samples.median_s == 1.0
    assert fake.runs == samples.warm_up + len(samples.seconds) == 6 + 8


def test_what_differs_is_sampled_until_its_tail_is_there() -> None:
    """The median of many equal runs is known at once; how slow one in a hundred is, is not."""
    noise = np.random.default_rng(0)
    scripts = [1.2 if slow else 1.0 for slow in noise.random(10_000) < 0.1]
    samples, _ = timed(iter(scripts), budget_s=1e9)
    assert len(samples.seconds) == 100
    assert samples.row()["p50_s"] == 1.0
    assert samples.row()["p99_s"] == 1.2
    assert len(timed(iter(scripts), budget_s=40.0)[0].seconds) < 40  # never beyond its time


def test_a_run_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(latency.time, "sleep", said.append)
    assert after_idle(lambda: said.append("run") or 3.0, 0.2)() == 3.0
    assert said == [0.2, "run"]


def test_slow_first_runs_are_warm_up() -> None:
    samples, _ = timed(itertools.chain([50.0, 20.0, 9.0, 4.0], itertools.repeat(1.0)), budget_s=1e9)
    assert set(samples.seconds) == {1.0}
    assert samples.warm_up >= 7


def test_the_budget_ends_what_does_not_settle() -> None:
    noise = np.random.default_rng(0)
    samples, fake = timed((float(x) for x in noise.uniform(0.5, 1.5, 10_000)), budget_s=40.0)
    assert 40.0 <= fake.now < 43.0
    assert samples.half_width > 0.01
    assert len(samples.seconds) > 10


def test_three_samples_whatever_the_budget() -> None:
    samples, _ = timed(itertools.repeat(5.0), budget_s=0.0)
    assert len(samples.seconds) == 3
    assert not samples.steady
    assert math.isnan(samples.half_width)


def test_the_interval_of_the_median_covers_it() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        draw = rng.lognormal(0.0, 0.3, 40)
        width = median_half_width(list(draw)) * np.median(draw)
        covered += abs(np.median(draw) - 1.0) <= 2 * width  # the interval may lie to one side
    assert covered / 400 > 0.93


def test_drift_compares_the_end_with_the_beginning() -> None:
    assert Samples((1.0,) * 5 + (1.1,) * 5, 0, True, 0.0).drift == pytest.approx(0.1)


def test_the_row_has_the_percentiles() -> None:
    row = Samples(tuple(float(x) for x in range(1, 102)), 0, True, 0.0).row()
    assert (row["samples"], row["p50_s"], row["p90_s"], row["p99_s"]) == (101, 51.0, 91.0, 100.0)


@pytest.mark.parametrize(
    ("first", "ordinary"),
    [(6.0, 5.0), (39.0, 38.0), (2.0, 1.5), (70.0, 3.5), (0.9, 0.9), (0.4, 0.3)],
    ids=["SDXL", "SDXL by 8", "SD", "compiled", "short", "shorter"],
)
def test_long_runs_on_a_gpu_get_the_time_that_the_precision_takes(first: float, ordinary: float) -> None:
    longest = longest_s("cuda:0", 15.0)
    samples, fake = timed(itertools.chain([first], itertools.repeat(ordinary)), 15.0, longest)
    assert samples.steady
    assert len(samples.seconds) >= 8
    assert samples.half_width == 0.0
    assert fake.now - first <= max(15.0, 12 * ordinary)


def test_the_longest_time_ends_what_is_longer_still() -> None:
    samples, fake = timed(itertools.repeat(100.0), 15.0, longest_s("cuda", 15.0))
    assert len(samples.seconds) == 3
    assert fake.now <= 500.0


def test_on_a_cpu_a_cell_takes_what_it_is_given() -> None:
    noise = np.random.default_rng(3)
    for run in (0.05, 0.3, 1.0):
        times = (run * float(x) for x in noise.uniform(0.9, 1.1, 1000))
        _, fake = timed(times, 3.0, longest_s("cpu", 3.0))
        assert fake.now <= max(3.0, 4 * run * 1.1) + 1.2 * run + 1e-9


def test_samples_begin_after_the_warm_up() -> None:
    fake, begun = FakeTime(itertools.repeat(1.0)), []
    samples = measure(fake.once, budget_s=100.0, sampling=lambda: begun.append(fake.runs), now=lambda: fake.now)
    assert begun == [samples.warm_up] == [6]


@pytest.mark.parametrize(
    ("ratios", "noted"),
    [
        ([0.85, 1.0, 1.15, 0.85, 0.84, 0.86], False),  # of a busy machine: the median is off, and not known
        ([0.85, 0.86, 0.84, 0.85, 0.86, 0.87], True),
        ([0.97, 0.97, 0.97, 0.97, 0.97, 0.97], False),
        ([0.85, 0.86, 0.84, 0.85, 0.86], False),  # an old run's five: too few to tell
    ],
)
def test_caching_off_its_parts_is_noted_where_it_is_no_chance(ratios: list[float], noted: bool) -> None:
    predicted = details._predicted({"skipping": {"big/ac-3": [(ratio, 1.0) for ratio in ratios]}})
    assert math.isnan(predicted["big/ac-3"]["half_width"]) == (len(ratios) < 6)
    model = {"cached": 0.0, "file_bytes": 1, "pinned": True, "skipping_predicted": predicted}
    notes = details._notes({"models": {"big": model}, "settings": {"device": "cpu"}, "latency": {}}, [])
    assert [note.startswith("big/ac-3 takes 1.17 times what its parts predict") for note in notes] == [
        True
    ] * noted


def test_large_batches_are_decoded_in_turn() -> None:
    vae: Any = SimpleNamespace(config=SimpleNamespace(block_out_channels=(128, 256, 512, 512)))
    work = Workload(SimpleNamespace(vae=vae), device="cpu", steps=1, guidance=1.0, side=1024)
    assert [work.decodes_in_turn(batch) for batch in (1, 4, 8)] == [False, False, True]
    work.side = 512
    assert not work.decodes_in_turn(8)


def test_decoding_in_turn_gives_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from tests.calibration.make_pipelines import tiny_sd

    work = Workload(tiny_sd(), device="cpu", steps=1, guidance=1.0, side=16)
    decoded = []
    work.pipe.vae.decoder.register_forward_pre_hook(lambda module, inputs: decoded.append(len(inputs[0])))
    images = [work.call(Run(1), ["a fox"] * 3, [0, 1, 2])]
    monkeypatch.setattr(Workload, "decodes_in_turn", lambda self, batch: batch > 2)
    images += [work.call(Run(1), ["a fox"] * n, list(range(n))) for n in (3, 2)]
    assert decoded == [3, 1, 1, 1, 2]
    assert np.allclose(images[0], images[1], atol=1e-5)


def test_further_options_reach_the_pipeline() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    got: dict[str, Any] = {}

    def pipe(**options: Any) -> Any:
        got.update(options)
        return SimpleNamespace(images=[])

    vae = SimpleNamespace(enable_slicing=int, disable_slicing=int, config=SimpleNamespace())
    flux = model("flux-schnell")
    work = Workload(pipe, device="cpu", steps=4, guidance=0.0, side=1024, options=flux.options)
    pipe.vae = vae  # type: ignore[attr-defined]
    work.call(Run(4), ["a fox"], [0])
    assert got["max_sequence_length"] == 256
