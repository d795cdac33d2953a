"""The load generator against servers that are slow, refuse, break off, stall, or say nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="needs the live extra: aiohttp")

from aiohttp import web

from argus_sim.domain import Outcome
from argus_sim.errors import InputError
from argus_sim.experiment import Experiment
from argus_sim.experiment.results import Results
from argus_sim.live.client import FAILED, OPEN, Answers, Target, play
from argus_sim.live.wire import body, image_in
from argus_sim.load import Asked, Told, arrivals_from, conclude, lag_warning, record_of
from argus_sim.metrics import summarise
from argus_sim.policies import registry
from argus_sim.provenance import Provenance
from argus_sim.trace import Trace
from tests.live.fake_server import Answer, fake, image, refusing
from tests.live.make_processes import play as run
from tests.make_profile import ladder
from tests.patience import LONG_S

ORIGIN = (Provenance(kind="synthetic", source="a test"),)


def ask(times: list[float], slo_s: float = 1000.0) -> Asked:
    trace = Trace("test", np.array(times), max(times[-1], 0.001), ORIGIN)
    return Asked.of_texts(trace, ["a fox", "лиса 🦊"], slo_s, seed=1)


def played(
    asked: Asked,
    answer: Answer = image,
    *,
    stop: asyncio.Event | None = None,
    on_image: Callable[[int, bytes], None] | None = None,
    on_progress: Callable[[int], None] = lambda sent: None,
    **target: Any,
) -> Answers:
    """Bodies say which row they are of: on a busy machine requests may come together, and in another order."""

    async def test() -> Answers:
        async with fake(answer) as (url, bodies):
            texts = [body(asked.texts[i], {"model": "m", "row": row}) for row, i in enumerate(asked.prompt)]
            answers = await play(
                Target(url, **target),
                asked.trace.arrival_s,
                texts,
                range(len(texts)),
                stop=stop,
                on_image=on_image,
                on_progress=on_progress,
            )
            if stop is None:
                sent = [asked.texts[i] for i in asked.prompt[np.isfinite(answers.sent_s)]]
                assert sorted(str(b["prompt"]) for b in bodies) == sorted(sent)
                assert all(b["n"] == 1 and b["model"] == "m" for b in bodies)
            return answers

    return run(test())


def test_what_is_not_said_stays_empty() -> None:
    asked = ask([0.0, 0.01, 0.02])
    answers = played(asked)
    record = record_of(asked, answers)
    assert record.outcome.tolist() == [Outcome.ON_TIME] * 3
    assert (record.worker == -1).all()
    assert record.variant.tolist() == [-1] * 3
    assert np.isnan(record.start_s).all()
    assert np.isnan(record.relative_quality).all()
    assert (record.finish_s > record.arrival_s).all()
    assert (answers.bytes > 10).all()
    frame = record.frame()
    assert frame["variant"].isna().all()


def test_images_are_given_by_row_and_links_are_none() -> None:
    async def answer(number: int, request: web.Request) -> web.StreamResponse:
        if number == 1:
            return web.json_response({"data": [{"url": "http://elsewhere"}]})
        return await image(number, request)

    images: dict[int, bytes] = {}

    async def test() -> None:
        async with fake(answer) as (url, _):
            bodies = [body("a fox", {"row": row}) for row in range(3)]
            await play(Target(url), np.array([0.0, 0.2, 0.4]), bodies, range(3), on_image=images.__setitem__)

    run(test())
    assert images == {0: b"hi", 2: b"hi"}
    assert image_in(b"no JSON") is None
    assert image_in(b'{"data": [{"b64_json": "?"}]}') is None


def test_what_is_said_is_noted_and_nonsense_is_not() -> None:
    said = {
        "x-argus-variant": "big",
        "x-argus-worker": "3",
        "x-argus-batch-size": "2",
        "x-argus-arrival-s": "10.0",
        "x-argus-finish-s": "10.5",
        "x-argus-service-s": "0.25",
        "x-argus-quality": "0.75",
    }

    async def answer(number: int, request: web.Request) -> web.StreamResponse:
        headers = said if number == 0 else {**said, "x-argus-worker": "1,2", "x-argus-quality": "good"}
        return web.json_response({"data": []}, headers=headers)

    asked = ask([0.0, 0.2])
    record = record_of(asked, played(asked, answer))
    assert record.variants == ("big",)
    assert record.worker.tolist() == [3, -1]
    assert record.batch_size.tolist() == [2, 2]
    assert record.relative_quality[0] == 0.75
    assert np.isnan(record.relative_quality[1])
    assert record.busy_s == 0.25
    assert record.workers == 4
    assert record.arrival_s[1] <= record.start_s[1] <= record.finish_s[1]


@pytest.mark.parametrize(("workers_up", "workers"), [(3, 3), (None, 0), ("many", 0), (-1, 0), (True, 0)])
def test_the_server_says_how_many_workers_it_has(workers_up: object, workers: int) -> None:
    """Which of them were seen to work is no measure: one may have had nothing to do."""
    asked = ask([0.0])

    async def test() -> Answers:
        async with fake(workers_up=workers_up) as (url, _):
            return await play(Target(url), asked.trace.arrival_s, [body("a fox")], [0])

    answers = run(test())
    assert record_of(asked, answers).workers == workers


@pytest.mark.parametrize(("speed", "sound"), [(1, True), (1.0, True), ("fast", True), (True, True), (60, False)])
def test_the_server_s_clock_runs_as_fast(speed: object, sound: bool) -> None:
    async def test() -> list[dict[str, object]]:
        async with fake(workers_up=2, speed=speed) as (url, bodies):
            with nullcontext() if sound else pytest.raises(InputError, match=r"runs at 60 times .* load at 1; "):
                await play(Target(url), ask([0.0]).trace.arrival_s, [body("a fox")], [0])
            return bodies

    assert len(asyncio.run(asyncio.wait_for(test(), 60))) == sound


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (429, Outcome.REJECTED, "too many"),
        (503, Outcome.LOST, "too many"),
        (500, Outcome.LOST, "HTTP 500: too many"),
        (400, Outcome.LOST, "HTTP 400: too many"),
    ],
)
def test_a_refusal_has_the_server_s_reason(status: int, outcome: Outcome, reason: str) -> None:
    asked = ask([0.0, 0.01])
    record = record_of(
        asked, played(asked, refusing(status, "Not served: too many" if status != 400 else "too many"))
    )
    assert record.outcome.tolist() == [outcome] * 2
    assert {record.reasons[i].replace("Not served: ", "") for i in record.reason} == {reason}
    assert np.isnan(record.finish_s).all()


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_address_is_said_at_once(status: int) -> None:
    asked = ask([0.0, 0.01, 1000.0])

    async def test() -> None:
        async with fake(refusing(status, "no")) as (url, _):
            await play(Target(url), asked.trace.arrival_s, [b"{}"], [0, 0, 0])

    with pytest.raises(InputError, match=f"serves no images: HTTP {status}: no"):
        run(test())


def test_a_later_refusal_is_an_answer() -> None:
    first = asyncio.Event()

    async def answer(number: int, request: web.Request) -> web.StreamResponse:
        if number == 0:
            return await image(number, request)
        await first.wait()  # the client has read the first answer
        return await refusing(404, "gone")(number, request)

    answers = played(ask([0.0, 0.01, 0.02]), answer, on_image=lambda row, image: first.set())
    assert answers.status.tolist() == [200, 404, 404]


def test_an_image_that_cannot_be_kept_ends_the_load() -> None:
    """It is no fault of the server's: the request is not lost."""

    def full(row: int, image: bytes) -> None:
        raise OSError(28, "No space left on device")

    async def test() -> None:
        async with fake() as (url, _):
            await play(Target(url), np.array([0.0, 1000.0]), [b"{}"], [0, 0], on_image=full)

    with pytest.raises(OSError, match="No space left"):
        run(test())


def test_a_key_must_fit_into_a_header() -> None:
    with pytest.raises(InputError, match="ARGUS_API_KEY: holds a line's end"):
        Target("http://127.0.0.1:9", "abc\n")


def test_connections_that_break_are_lost() -> None:
    async def answer(number: int, request: web.Request) -> web.StreamResponse:
        if number == 0:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return await image(number, request)

    asked = ask([0.0, 0.3, 0.31])
    answers = played(asked, answer)
    assert answers.status.tolist() == [FAILED, 200, 200]
    record = record_of(asked, answers)
    assert [record.reasons[i] for i in record.reason] == ["the connection broke", "", ""]
    assert record.outcome.tolist() == [Outcome.LOST, Outcome.ON_TIME, Outcome.ON_TIME]


def test_answers_that_never_come_are_lost_and_keep_nobody_waiting() -> None:
    async def answer(number: int, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(LONG_S)
        raise AssertionError

    asked = ask([0.0, 0.1, 0.5])
    answers = played(asked, answer, timeout_s=0.3)
    assert answers.status.tolist() == [FAILED] * 3
    assert (answers.received_s - answers.sent_s > 0.29).all()
    record = record_of(asked, answers)
    assert {record.reasons[i] for i in record.reason} == {"no answer in time"}
    assert record.outcome.tolist() == [Outcome.LOST] * 3


def test_latency_counts_the_wait_while_the_server_stalls() -> None:
    """No coordinated omission: all that fell due during the stall waited for what was left of it."""
    free = asyncio.Event()

    async def answer(number: int, request: web.Request) -> web.StreamResponse:
        if number == 9:
            free.set()  # the server stalls until the last request is there: nobody waited with sending
        await free.wait()
        return await image(number, request)

    times = [0.1 * i for i in range(10)]
    asked = ask(times, slo_s=0.35)
    answers = played(asked, answer)
    record = record_of(asked, answers)
    latency = record.finish_s - record.arrival_s
    for due_s, waited_s in zip(times, latency.tolist(), strict=True):
        assert waited_s >= times[-1] - due_s - 1e-3  # the last was sent no earlier than it was due
    assert (answers.sent_s < record.finish_s.min()).all()
    assert (record.outcome[:6] == Outcome.LATE).all()


def test_a_client_that_stalls_counts_its_own_lag() -> None:
    """While the loop is blocked nothing is sent; the latency counts from due all the same."""

    async def answer(number: int, request: web.Request) -> web.StreamResponse:
        if number == 0:
            # As if the loop had been blocked until now: the server is in the client's process, both stall.
            loop, blocked_s = asyncio.get_running_loop(), 200.0
            loop.time = lambda time=loop.time: time() + blocked_s  # type: ignore[method-assign, misc]
        return await image(number, request)

    asked = ask([0.0, 100.0, 100.1])
    answers = played(asked, answer)
    record = record_of(asked, answers)
    assert answers.lag_s[1] > 99
    assert record.finish_s[1] - record.arrival_s[1] > 99
    warning = lag_warning(asked, answers)
    assert warning is not None
    assert "lagged" in warning


def test_more_open_than_allowed_is_not_sent() -> None:
    all_due = asyncio.Event()

    async def answer(number: int, request: web.Request) -> web.StreamResponse:
        await all_due.wait()
        return await image(number, request)

    asked = ask([0.001 * i for i in range(64)])  # after so many, progress is told
    answers = played(asked, answer, max_open=2, on_progress=lambda sent: all_due.set())
    record = record_of(asked, answers)
    assert record.outcome.tolist() == [Outcome.ON_TIME] * 2 + [Outcome.LOST] * 62
    assert record.reasons[record.reason[3]] == "not sent: 2 requests were open"
    assert np.isnan(answers.sent_s[2:]).all()


def test_a_stop_leaves_what_is_there() -> None:
    first, stop = asyncio.Event(), asyncio.Event()

    async def answer(number: int, request: web.Request) -> web.StreamResponse:
        if number:
            await first.wait()
            stop.set()
            await asyncio.sleep(LONG_S)
        return await image(number, request)

    asked = ask([0.0, 0.1, 100.0])
    answers = played(asked, answer, stop=stop, on_image=lambda row, image: first.set())
    assert answers.stopped_s is not None
    assert answers.status.tolist() == [200, OPEN, OPEN]
    record = record_of(asked, answers)
    assert record.outcome.tolist() == [Outcome.ON_TIME, Outcome.UNFINISHED]
    assert record.duration_s == answers.stopped_s


def test_nobody_there_is_said_before_anything_is_sent() -> None:
    asked = ask([0.0])
    with pytest.raises(InputError, match="no server answers"):
        asyncio.run(play(Target("http://127.0.0.1:9"), asked.trace.arrival_s, [b"{}"], [0]))


def test_the_folder_is_a_run_s_whoever_the_server_is(tmp_path: Path) -> None:
    """A foreign server says nothing of variants, workers and quality; report and results bear that."""

    async def answer(number: int, request: web.Request) -> web.StreamResponse:
        return await (image if number % 2 else refusing(429, "Not served: busy"))(number, request)

    asked = ask([0.01 * i for i in range(20)])
    answers = played(asked, answer)
    experiment = Experiment.check(
        {
            "name": "load",
            "profile": "none",
            "traces": [{"name": "test", "file": "test.csv"}],
            "policies": ["static"],
        },
        where="test",
    )
    summary = conclude(Told("them", experiment, "http://them"), asked, answers, tmp_path / "out")
    results = Results.load(tmp_path / "out")
    assert results.summary.loc[0, "arrived"] == 20
    assert results.summary.loc[0, "rejected"] == 10 == summary["rejected"]
    assert results.summary["relative_quality"].isna().all()
    run = results.run("them")
    assert run.outcomes["variant"].isna().all()
    assert run.outcomes["reason"].astype(str).tolist().count("busy") == 10
    assert run.timeline["arrived"].sum() == 20
    assert run.timeline["utilisation"].isna().all()
    again = summarise(record_of(asked, answers))
    assert results.summary.loc[0, "latency_mean_s"] == pytest.approx(again["latency_mean_s"])
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "them, measured" in page
    assert 'class="badge measured"' in page
    policy = registry.find(results.experiment.policies[0].name)
    with pytest.raises(InputError, match="measured on a live server"):
        policy(None, None)  # type: ignore[arg-type]


def test_requests_are_chosen_by_where_they_begin() -> None:
    trace = Trace("t", np.array([1.0, 2.0, 4.0, 4.0, 7.0]), 10.0, ORIGIN)
    part, begin_s = arrivals_from(trace, 1.5, 3)
    assert begin_s == 2.0
    assert part.arrival_s.tolist() == [0.0, 2.0, 2.0]
    assert part.duration_s == 5.0
    assert arrivals_from(trace, 0.0, None)[0].arrival_s.tolist() == [0.0, 1.0, 3.0, 3.0, 6.0]
    with pytest.raises(InputError, match="--from-s"):
        arrivals_from(trace, 8.0, 3)


def test_a_profile_s_prompts_are_those_of_the_simulated_run() -> None:
    from argus_sim.workload import Workload, stream

    trace = Trace("t", np.arange(50.0), 50.0, ORIGIN)
    profile = ladder()
    asked = Asked.of_profile(trace, profile, 5.0, seed=3)
    workload = Workload.of(trace, profile, 5.0, stream(3, "prompts"))
    assert asked.prompt.tolist() == workload.prompt.tolist()
    assert asked.texts[asked.prompt[0]] == profile.prompt_texts[workload.prompt[0]]
