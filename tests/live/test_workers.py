"""Between the engine and worker processes: news while some still start, and how long an answer may take."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the live extra: fastapi")

from argus_sim.domain import WorkerStatus
from argus_sim.live.clock import Clock
from argus_sim.live.executor import Executor
from argus_sim.live.painter import Load, Loaded, Paint, Painted
from argus_sim.live.processes import Owner, Patience
from argus_sim.live.workers import DiffusersWorkers
from argus_sim.live.zoo import Recipe
from argus_sim.serve import choose_policy, fresh_engine
from tests.live.make_processes import empty_zoo, play, until
from tests.live.make_server import make_scene


class Process:
    """Up and down as the test says; loads and paints at once."""

    patience = Patience(start_s=7.0, answer_s=3.0, slowness=2.0)
    pid = None

    def __init__(self, owner: Owner) -> None:
        self.owner, self.is_up = owner, False
        self.may_start = asyncio.Event()
        self.limits_s: list[tuple[type[Any], float | None]] = []

    async def start(self) -> None:
        await self.may_start.wait()
        self.is_up = True

    def send(self, message: Any, *, answer_s: float | None = None) -> None:
        if not self.is_up:
            return
        self.limits_s.append((type(message), answer_s))
        match message:
            case Load(model):
                answer: Any = Loaded(model)
            case Paint(_, wishes):
                answer = Painted(tuple(b"png" for _ in wishes))
        asyncio.get_running_loop().call_soon(self.owner.on_message, answer)

    def has_worked(self) -> None:
        pass

    async def stop(self) -> None:
        pass


class Machines:
    def __init__(self) -> None:
        self.processes: list[Process] = []

    async def open(self, workers: int) -> None:
        pass

    def worker(self, number: int, owner: Owner) -> Any:
        self.processes.append(Process(owner))
        return self.processes[-1]

    async def close(self) -> None:
        pass


def make(folder: Path, usual_s: float) -> tuple[Executor, Machines]:
    """An executor of three workers, two for the large model and one for the small one."""
    scene = make_scene(folder, {"name": "static", "params": {"placement": {"big": 2, "small": 1}}}, workers=3)
    machines, profile = Machines(), scene.profile
    recipes = tuple(
        Recipe(v.name, v.model, "", 0, dict.fromkeys(profile.batch_sizes(i), usual_s))
        for i, v in enumerate(profile.variants)
    )
    workers = DiffusersWorkers(replace(empty_zoo(), recipes=recipes), machines)
    engine = fresh_engine(scene, choose_policy(scene, None), 1)
    return Executor(engine, workers, Clock(), slo_s=1000.0), machines


@pytest.mark.parametrize("late", [0, 1])
def test_a_loss_while_others_start_leaves_nobody_loading_for_ever(tmp_path: Path, late: int) -> None:
    """The policy has another one take over its model at once, which would not hear of it yet."""

    async def test() -> None:
        executor, machines = make(tmp_path, 1.0)
        engine = executor.engine
        starting = asyncio.create_task(executor.start())
        await until(lambda: len(machines.processes) == 3)
        small = next(w.index for w in engine.workers if engine.catalog.models[w.model or 0] == "small")
        for number in range(3):
            if number != late:
                machines.processes[number].may_start.set()
        await until(lambda: machines.processes[small].limits_s)
        await asyncio.sleep(0.05)
        lost = machines.processes[small]
        lost.is_up = False
        lost.owner.on_down("killed")
        machines.processes[late].may_start.set()
        await starting
        lost.is_up = True
        lost.owner.on_up()
        await until(lambda: all(worker.status is WorkerStatus.IDLE for worker in engine.workers))
        held = sorted(engine.catalog.models[w.model] for w in engine.workers if w.model is not None)
        assert held == ["big", "big", "small"]
        assert [fault.kind for fault in executor.faults] == ["lost", "joined"]
        await executor.stop()

    play(test())


@pytest.mark.parametrize(("usual_s", "answer_s"), [(1.0, 3.0), (5.0, 10.0)])
def test_a_batch_has_a_multiple_of_its_usual_time(tmp_path: Path, usual_s: float, answer_s: float) -> None:
    async def test() -> None:
        executor, machines = make(tmp_path, usual_s)
        starting = asyncio.create_task(executor.start())
        await until(lambda: len(machines.processes) == 3)
        for process in machines.processes:
            process.may_start.set()
        await starting
        await executor.submit(0, "a fox")
        limits_s = {limit for process in machines.processes for limit in process.limits_s}
        assert limits_s == {(Load, 7.0), (Paint, answer_s)}
        await executor.stop()

    play(test())
