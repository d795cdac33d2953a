"""Processes under supervision: what becomes of those that die, hang, or never get ready."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from argus_sim.errors import InputError
from argus_sim.live.processes import Kept, Patience, Supervised
from tests.live.make_processes import NEVER_READY, Diary, crash, echo, is_gone, play, until
from tests.patience import LONG_S

#: Nobody is taken for dead who is only slow.
QUICK = Patience(
    beat_s=0.1, silent_beats=10 * int(LONG_S), start_s=LONG_S, wait_s=0.01, longest_wait_s=0.1, stop_s=LONG_S
)


async def started(
    prepare: Callable[..., Any] = echo, *args: Any, patience: Patience = QUICK
) -> tuple[Any, Diary]:
    diary = Diary()
    process = Supervised("worker 3", prepare, args, diary, patience)
    await process.start()
    return process, diary


def test_messages_of_any_size_are_answered_in_order() -> None:
    async def test() -> None:
        process, diary = await started()
        messages = ["a", b"x" * 5_000_000, "nothing", "b"]
        for message in messages:
            process.send(message)
        await until(lambda: len(diary.messages) == 3)
        assert diary.messages == ["a", messages[1], "b"]
        pid = process.pid
        await process.stop()
        assert is_gone(pid)
        assert not diary.downs

    play(test())


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("raise", "ValueError: no such luck"),
        ("exit", "its process ended with status 7"),
        ("stop yourself", "no heartbeat for"),
    ],
)
def test_one_that_ends_is_started_again(message: str, why: str) -> None:
    async def test() -> None:
        # Silence is deadly for the first one only: its successor is not to be mistaken for silent.
        deadly = replace(QUICK, silent_beats=5) if message == "stop yourself" else QUICK
        process, diary = await started(patience=deadly)
        process.patience = QUICK
        first = process.pid
        process.send(message)
        await until(lambda: diary.downs)
        assert diary.downs[0].startswith(why)
        assert not process.is_up
        await until(lambda: diary.ups)
        assert process.is_up
        assert process.pid != first
        assert is_gone(first)
        process.send("again")
        await until(lambda: "again" in diary.messages)
        await process.stop()
        assert (len(diary.downs), diary.ups) == (1, 1)

    play(test())


def test_one_that_is_killed_at_work_is_started_again_and_one_that_works_long_is_not() -> None:
    async def test() -> None:
        process, diary = await started(patience=replace(QUICK, beat_s=0.05, silent_beats=100))
        process.send(["sleep", 6.0])  # longer than silence would be allowed
        await until(lambda: diary.messages)
        assert not diary.downs
        process.send(["sleep", LONG_S])
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: diary.ups)
        assert diary.downs == ["its process was ended by SIGKILL"]
        await process.stop()

    play(test())


def test_one_that_never_answers_is_started_again_though_its_heart_beats() -> None:
    async def test() -> None:
        process, diary = await started()
        process.send(["sleep", LONG_S], answer_s=0.5)
        await until(lambda: diary.downs)
        assert diary.downs[0].startswith("no answer for 0.")
        await until(lambda: diary.ups)
        process.send("b")  # and its successor has not to answer in that time
        await until(lambda: diary.messages)
        assert len(diary.downs) == 1
        await process.stop()

    play(test())


class Idle(Kept):
    """Nothing that could answer: a test says what is heard, and when."""

    pid = None

    def _post(self, message: Any) -> None: ...

    async def _live(self, ready: asyncio.Future[None]) -> str:
        raise NotImplementedError


def test_an_answer_has_its_time_from_when_the_one_before_has_come() -> None:
    """What is not answered has none."""

    async def test() -> None:
        diary = Diary()
        kept = Idle("worker 3", echo, (), diary, QUICK)
        kept._set_up(asyncio.get_running_loop().create_future())
        kept.send("a", answer_s=30.0)
        kept.send("nothing")
        kept.send("b", answer_s=0.5)
        assert not kept._overdue(20.0)
        kept._hear("a")
        assert not kept._overdue(0.4)
        kept._hear("b")
        assert not kept._overdue(1000.0)
        kept.send("c", answer_s=0.5)
        assert not kept._overdue(0.4)
        assert kept._overdue(0.2) == "no answer for 0.6 s"
        kept._set_up(asyncio.get_running_loop().create_future())  # another one owes no answers
        assert not kept._overdue(1000.0)
        assert diary.messages == ["a", "b"]

    play(test())


@pytest.mark.parametrize(("prepare", "args", "start_s", "message"), NEVER_READY)
def test_one_that_never_gets_ready_says_why(
    prepare: Callable[..., Any],
    args: tuple[Any, ...],
    start_s: float,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def test() -> None:
        with pytest.raises(InputError, match=message):
            await started(prepare, *args, patience=replace(QUICK, start_s=start_s))

    play(test())
    assert ("Traceback" in capfd.readouterr().err) == (prepare is crash)


def test_signals_of_the_group_are_the_host_s_business() -> None:
    """Ctrl-C and a service manager's SIGTERM reach every process; what is running is finished all the same."""

    async def test() -> None:
        process, diary = await started()
        process.send(["sleep", 0.5])
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, number)
        await until(lambda: diary.messages)
        assert not diary.downs
        await process.stop()

    play(test())


HOST = """
import asyncio
from argus_sim.live.processes import Supervised
from tests.live.make_processes import Diary, echo
from tests.live.test_processes import QUICK

async def main():
    process = Supervised("worker 0", echo, (), Diary(), QUICK)
    await process.start()
    process.send(["sleep", 3600.0])
    print(process.pid, flush=True)
    {then}

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("then", ["await asyncio.sleep(3600)", "raise SystemExit", "import os; os._exit(1)"])
def test_none_outlives_its_host(then: str, tmp_path: Path) -> None:
    """However the host ends: killed, by an error, or at once."""
    script = tmp_path / "host.py"
    script.write_text(HOST.format(then=then))
    root = str(Path(__file__).parents[2])
    host = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    try:
        assert host.stdout is not None
        pid = int(host.stdout.readline())
    finally:
        if "sleep" in then:
            host.kill()
        host.communicate(timeout=LONG_S)
    deadline_s = time.monotonic() + LONG_S
    while not is_gone(pid) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert is_gone(pid)
