"""How the machine's pace is told from what else differs, and what images are worth."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the live extra: fastapi")
pytest.importorskip("aiohttp", reason="needs the live extra: aiohttp")
pytest.importorskip("httpx", reason="needs the test extra: httpx")

from argus_sim.errors import InputError
from argus_sim.experiment.simulate import simulate
from argus_sim.live import drift, timing
from argus_sim.live.client import Answers
from argus_sim.live.timing import Cell
from argus_sim.profile import Profile
from argus_sim.real_workers import threads_of
from argus_sim.serve import choose_policy
from tests.live.make_processes import play
from tests.live.make_server import SHAPES, http, make_scene, running, shapes_scene
from tests.make_profile import make_profile
from tests.make_record import make_record
from tests.patience import LONG_S

needs_torch = pytest.mark.skipif(
    any(importlib.util.find_spec(p) is None for p in ("torch", "diffusers", "transformers", "torchmetrics")),
    reason="needs the calibrate extra: torch, diffusers, transformers, torchmetrics",
)


def test_a_batch_counts_once_however_many_requests_it_had() -> None:
    record = replace(
        make_record(requests=20),
        variant=np.array([0, 0, 0, 1, -1] * 4, dtype=np.int32),
        batch_size=np.array([2, 2, 1, 1, 0] * 4, dtype=np.int32),
        worker=np.zeros(20, dtype=np.int32),
    )
    answers = Answers(record.arrival_s, 1.0)
    finish = np.repeat(np.arange(4.0), 5)
    answers.finish_s[:] = finish * 10 + np.tile([1, 1, 2, 3, 4], 4)
    answers.service_s[:] = np.tile([0.5, 0.5, 0.25, 0.125, math.nan], 4)
    profile = Profile.load("shapes-cpu")
    made = replace(record, variants=tuple(v.name for v in profile.variants))
    names = made.variants
    found = drift.batches_of(made, answers, profile)
    assert found == {
        (names[0], 2, 0.0): [0.5] * 4,
        (names[0], 1, 0.0): [0.25] * 4,
        (names[1], 1, 0.0): [0.125] * 4,
    }
    variants = made.variants[:2]
    assert drift.cells_of(made, profile) == [(name, size) for name in variants for size in (1, 2, 4, 8)]


def test_batches_after_a_pause_are_told_from_others() -> None:
    """A worker that rests for 0.1, 1, 5 and 0 s before its batches, and another beside it."""
    profile = make_profile({"big": {1: 4.0}}, after_idle_s={"big": {0.5: 5.0, 3.0: 6.0}})
    record = replace(
        make_record(requests=5),
        variants=("big",),
        variant=np.zeros(5, dtype=np.int32),
        batch_size=np.ones(5, dtype=np.int32),
        worker=np.array([0, 0, 0, 0, 1], dtype=np.int32),
    )
    answers = Answers(record.arrival_s, 1.0)
    answers.service_s[:] = took_s = np.array([4.0, 4.5, 5.5, 4.25, 7.0])
    answers.finish_s[:] = np.append(np.cumsum(took_s[:4] + np.array([0.1, 1.0, 5.0, 0.0])), 12.0)
    found = drift.batches_of(record, answers, profile)
    assert found == {("big", 1, 0.0): [4.0, 4.25], ("big", 1, 0.5): [4.5], ("big", 1, 3.0): [7.0, 5.5]}
    begun = drift.batches_of(record, answers, profile, slice(2))
    assert begun == {("big", 1, 0.0): [4.0], ("big", 1, 0.5): [4.5]}
    assert drift.batches_of(record, answers, profile, slice(2, None)) == {
        ("big", 1, 0.0): [4.25],
        ("big", 1, 3.0): [7.0, 5.5],
    }
    again = drift.at_pace(profile, found)
    assert again.latency(0, 1).mean_s == 4.125
    assert [(idle_s, times.mean_s) for idle_s, times in again.after_idle(0, 1)] == [(0.5, 4.5), (3.0, 6.25)]
    paces = drift.paces(profile, {("big", 1, 0.5): [9.0]}, found, {})
    assert [(p.idle_s, p.batches, p.profile_s) for p in paces] == [(0.0, 2, 4.0), (0.5, 1, 5.0), (3.0, 2, 6.0)]
    assert [p.before_s for p in paces][1] == 9.0
    assert Cell.parse("big@1", profile) == [Cell("big", 1), Cell("big", 1, 0.5), Cell("big", 1, 3.0)]


def test_drift_is_weighed_by_what_the_run_did() -> None:
    profile = Profile.load("shapes-cpu")
    small = profile.variant_id("shapes-small")
    before = {("shapes-small", 1, 0.0): [0.2, 0.2], ("shapes-small", 2, 0.0): [0.4]}
    after = {("shapes-small", 1, 0.0): [0.3], ("shapes-small", 2, 0.0): [0.4]}
    during = {
        ("shapes-small", 1, 0.0): [0.25] * 3,
        ("shapes-small", 2, 0.0): [0.4],
        ("shapes-tiny", 1, 0.0): [9.0],
    }
    found = drift.Drift(drift.paces(profile, before, during, after), {})
    assert found.ratio("after_s", "before_s") == pytest.approx((3 * 0.3 + 0.4) / (3 * 0.2 + 0.4) - 1)
    assert found.ratio("during_s", "before_s", "after_s") == pytest.approx(0.0)
    said_s = 3 * profile.latency(small, 1).mean_s + profile.latency(small, 2).mean_s
    assert found.ratio("before_s", "profile_s") == pytest.approx((3 * 0.2 + 0.4) / said_s - 1)
    assert found.ratio("after_s", "profile_s") == pytest.approx((3 * 0.3 + 0.4) / said_s - 1)
    assert found.plain()["cells"][2]["variant"] == "shapes-tiny"
    nothing = drift.Drift(drift.paces(profile, {}, {}, {}), {})
    assert math.isnan(nothing.ratio("after_s", "before_s"))
    assert nothing.words()[0][1] == "–"
    assert nothing.words()[-1] == ("the machine", "its pace is not known")
    assert not nothing.kept_pace


@pytest.mark.parametrize(
    ("before_s", "after_s", "kept", "told"),
    [
        (4.0, 4.19, True, "kept the profile's pace within 5 %"),
        (3.82, 4.0, True, "kept the profile's pace within 5 %"),
        (4.0, 4.4, False, "was 10.0 % off the profile's pace"),
        (3.6, 3.96, False, "was 10.0 % off the profile's pace"),
    ],
)
def test_a_machine_that_left_its_profile_is_told_from_one_that_kept_it(
    before_s: float, after_s: float, kept: bool, told: str
) -> None:
    profile = make_profile({"big": {1: 4.0}})
    cell = ("big", 1, 0.0)
    found = drift.Drift(drift.paces(profile, {cell: [before_s]}, {cell: [4.5]}, {cell: [after_s]}), {})
    assert found.kept_pace is kept is found.plain()["kept_pace"]
    assert found.words()[-1][1].startswith(told)
    assert found.words()[0][1] == f"{100 * (before_s / 4.0 - 1):+.1f} %"


def test_workers_twice_as_slow_serve_a_policy_that_does_not_know_it(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    table = scene.profile.table("latency")
    times = {
        (row.variant, row.batch_size, 0.0): [2 * row.mean_s, 2 * row.mean_s]
        for row in table.itertuples(index=False)
    }
    slower = drift.at_pace(scene.profile, times)
    for name, size, _ in times:
        variant = scene.profile.variant_id(name)
        assert slower.latency(variant, size).mean_s == 2 * scene.profile.latency(variant, size).mean_s
        assert slower.latency(variant, size).std_s == 0
    trace = scene.trace(scene.experiment.traces[0], 1)
    policy = choose_policy(scene, None)
    usual, slow = simulate(scene, policy, trace, 1), simulate(scene, policy, trace, 1, hardware=slower)
    assert (slow.deadline_s == usual.deadline_s).all()
    took = (slow.finish_s - slow.start_s)[slow.batch_size == 1]
    assert np.nanmedian(took) == pytest.approx(
        2 * np.nanmedian((usual.finish_s - usual.start_s)[usual.batch_size == 1]), rel=0.1
    )
    same = simulate(scene, policy, trace, 1, workload=scene.workload(trace, 1), hardware=scene.profile)
    np.testing.assert_array_equal(same.finish_s, usual.finish_s)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shapes-smal@1", "did you mean 'shapes-small'"),
        ("shapes-small@3", "Allowed: 1, 2, 4, 8"),
        ("shapes-small", "VARIANT@SIZE"),
        ("shapes-small@", "Allowed: 1, 2, 4, 8"),
    ],
)
def test_what_cannot_be_timed_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Cell.parse(text, Profile.load("shapes-cpu"))
    assert Cell.parse("shapes-large/ac-25@8", Profile.load("shapes-cpu")) == [Cell("shapes-large/ac-25", 8)]
    assert len(Cell.all_of(Profile.load("shapes-cpu"))) == 48


def test_workers_that_are_down_at_the_end_are_stopped_without_being_timed(tmp_path: Path) -> None:
    class Workers:
        def __init__(self) -> None:
            self.stopped, self.is_up = 0, True

        async def start(self, host: Any, models: list[str]) -> None: ...

        async def ask(self, worker: int, message: Any, answer: type[Any]) -> Any:
            if not self.is_up:
                raise InputError("worker 0 is not up")
            return answer((0.5,)) if answer is timing.Timed else answer("shapes-small")

        async def stop(self) -> None:
            self.stopped += 1

    async def life(out: Path, *, dies: bool) -> int:
        inner: Any = Workers()
        host: Any = None
        timed = timing.TimedWorkers(
            inner, Profile.load("shapes-cpu"), [Cell("shapes-small", 1, 0.2)], out.write_bytes
        )
        await timed.start(host, ["shapes-small"])
        inner.is_up = not dies
        await timed.stop()
        return int(inner.stopped)

    lost, kept = tmp_path / "lost.json", tmp_path / "kept.json"
    assert asyncio.run(life(lost, dies=True)) == 1
    assert not lost.exists()
    assert asyncio.run(life(kept, dies=False)) == 1
    cell = {"variant": "shapes-small", "batch_size": 1, "idle_s": 0.2, "seconds": [0.5]}
    assert json.loads(kept.read_text("utf-8")) == {"before": [cell], "after": [cell]}


@needs_torch
def test_workers_are_timed_and_the_engine_hears_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also variants of another model than the one that is held: it is put back."""
    monkeypatch.setattr(timing, "BUDGET_S", 0.1)
    scene, out = shapes_scene("clipper-ha"), tmp_path / "timings.json"
    timed = ("shapes-tiny@1", "shapes-large/steps-2@2")

    async def test() -> None:
        pipelines = replace(SHAPES, timings=out, timed=timed)
        async with (
            running(scene, pipelines=pipelines) as (url, service),
            http(url) as client,
        ):
            assert not out.exists()
            answer = await client.post("/v1/images/generations", json={"prompt": "a red circle"})
            assert answer.status_code == 200
            assert answer.headers["x-argus-variant"] == "shapes-large"
            # Large makes an image in 50 steps: what tiny takes for as many would be seen.
            assert service.executor.loads == []
            assert service.executor.engine.arrived == 1

    play(test())
    told = json.loads(out.read_text("utf-8"))
    for when in ("before", "after"):
        cells = {(row["variant"], row["batch_size"]): row["seconds"] for row in told[when]}
        assert set(cells) == {("shapes-tiny", 1), ("shapes-large/steps-2", 2)}
        for seconds in cells.values():
            assert len(seconds) >= 2 * 3  # two workers, three samples each at the least
            assert all(0 < s < LONG_S for s in seconds)


def test_workers_have_the_threads_that_the_profile_had() -> None:
    profile = Profile.load("shapes-cpu")
    assert threads_of(profile) == 1
    assert threads_of(Profile.load("artefact-a100")) is None
    (first, *others) = profile.manifest.generator["merged"]
    generator = {"merged": [first, *({**part, "machine": {"threads": 2}} for part in others)]}
    manifest = profile.manifest.model_copy(update={"generator": generator})
    # The first part measured no latency.
    assert threads_of(Profile(manifest, {name: profile.table(name) for name in profile.tables})) == 2


@needs_torch
def test_images_are_rated_against_the_profile() -> None:
    """Images as calibration made them have its score; for other prompts they do not."""
    from argus_sim.live.painter import Painter, Wish
    from argus_sim.live.scoring import score, scorer_of
    from argus_sim.live.zoo import live_zoo
    from calibration.quality import image_seed

    profile = Profile.load("shapes-cpu")
    zoo = live_zoo(profile, "shapes")
    painter = Painter(zoo, "cpu")
    painter.load("shapes-small")
    variant = profile.variant_id("shapes-small")
    # The same prompts with the profile's two seeds, of which it has the mean.
    texts = dict(enumerate(profile.prompt_texts[:8] * 2))
    wishes = [Wish(text, image_seed(row % 8, row // 8)) for row, text in texts.items()]
    images = dict(enumerate(painter.paint(zoo.recipes[variant], wishes).images))
    record = replace(
        make_record(requests=17),
        variants=tuple(v.name for v in profile.variants),
        prompts=profile.prompts,
        prompt=np.arange(17, dtype=np.int32) % 8,
        variant=np.full(17, variant, dtype=np.int32),
    )
    scorer = scorer_of(profile, "shapes")
    good = score(images, texts, record, profile, scorer)
    assert good.metric == "clip_score"
    assert len(good.live) == 16
    assert abs(good.error) < 0.005
    # A prompt's two images have the mean that the profile has of them; one of the two differs from it.
    assert good.half_width < 0.005
    half = score({row: images[row] for row in range(8)}, texts, record, profile, scorer)
    assert half.half_width > 0.005
    assert abs(half.error) < half.half_width
    assert [name for name, _ in good.words()] == ["clip_score of 16 images, shapes-small"]
    strangers = score(images, {row: texts[(row + 1) % 8] for row in texts}, record, profile, scorer)
    assert strangers.error < good.error - 0.1
    with pytest.raises(InputError, match="no image came"):
        score({}, {}, record, profile, scorer)
    with pytest.raises(InputError, match="rated by 'clip_score'; found pick_score"):
        scorer_of(profile, "shapes", "pickscore")
