"""Workers as Ray actors: what becomes of those that end, hang, or lose their machine; and real images."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs the ray extra: ray", allow_module_level=True)
pytest.importorskip("httpx", reason="needs the test extra: httpx")

from argus_sim.errors import InputError
from argus_sim.live.executor import Executor
from argus_sim.live.processes import Patience
from argus_sim.live.ray_actors import RayConfig, RayWorker
from argus_sim.live.ray_cluster import RayMachines
from argus_sim.live.seams import Rejected, Served
from tests.live.make_processes import NEVER_READY, Diary, are_able, asked_until, echo, is_gone, play, until
from tests.live.make_ray import QUICK, make_scene, ray_cluster, working
from tests.live.make_server import AMPLE, http, under_way
from tests.patience import LONG_S

PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture
def node(cluster: Any) -> Any:
    """With room for two workers; a test may take it away."""
    if not cluster.worker_nodes:
        cluster.add_node(num_cpus=2)
    (node,) = cluster.worker_nodes
    return node


@contextlib.asynccontextmanager
async def started(
    cluster: Any, prepare: Callable[..., Any] = echo, *args: Any, patience: Patience = QUICK
) -> Any:
    diary = Diary()
    machines = RayMachines(RayConfig(cluster.address), prepare, args, patience)
    await machines.open(1)
    process = machines.worker(3, diary)
    try:
        await process.start()
        yield process, diary
    finally:
        await process.stop()
        await machines.close()


def test_one_that_ends_is_started_again(cluster: Any, node: Any) -> None:
    """By an error, itself, kill -9, or because it is silent or never answers; what is said meanwhile is lost."""

    async def test() -> None:
        async with started(cluster) as (process, diary):
            messages = ["a", b"x" * 5_000_000, "nothing", "b"]
            for message in messages:
                process.send(message)
            await until(lambda: len(diary.messages) == 3)
            assert diary.messages == ["a", messages[1], "b"]
            for count, (message, why) in enumerate(
                [
                    ("raise", "ValueError: no such luck"),
                    ("exit", "its process ended"),
                    (["sleep", LONG_S], "its process ended"),
                    ("stop yourself", "no heartbeat for"),
                    (["sleep", LONG_S + 1], "no answer for"),
                ],
                1,
            ):
                first = process.pid
                # Silence is deadly only for the one that is going to stop itself.
                process.patience = replace(QUICK, silent_beats=25) if count == 3 else QUICK
                process.send(message, answer_s=1.0 if message == ["sleep", LONG_S + 1] else None)
                if message == ["sleep", LONG_S]:
                    os.kill(first, signal.SIGKILL)
                await until(lambda count=count: len(diary.downs) == count)
                assert diary.downs[-1].startswith(why), diary.downs[-1]
                assert not process.is_up
                process.send("into the void")
                await until(lambda count=count: diary.ups == count)
                assert process.pid != first
                await until(lambda first=first: is_gone(first))
                process.send(["again", count])
                await until(lambda count=count: ["again", count] in diary.messages)
            assert "into the void" not in diary.messages
            assert (len(diary.downs), diary.ups) == (5, 5)
            last = process.pid
        await until(lambda: is_gone(last))

    play(test())


@pytest.mark.parametrize(("prepare", "args", "start_s", "message"), NEVER_READY)
def test_one_that_never_gets_ready_says_why(
    cluster: Any,
    node: Any,
    prepare: Any,
    args: tuple[Any, ...],
    start_s: float,
    message: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long Ray takes to find room for it: on a busy machine that may be seconds."""
    arrive = RayWorker._arrive
    monkeypatch.setattr(RayWorker, "_arrive", lambda self, timeout_s: arrive(self, LONG_S))

    async def test() -> None:
        with pytest.raises(InputError, match=message):
            async with started(cluster, prepare, *args, patience=replace(QUICK, start_s=start_s)):
                pass

    play(test())
    assert capfd.readouterr().out == ""


def test_where_there_is_no_room_that_is_said(cluster: Any, node: Any) -> None:
    import ray

    async def test() -> None:
        machines = RayMachines(RayConfig(cluster.address, cpus=64), echo, (), Patience(start_s=1.0))
        try:
            await machines.open(1)
            message = "no room for it after 1 s: it needs 64 CPUs, the cluster has 2 CPUs and 0 GPUs in all$"
            with pytest.raises(InputError, match=message):
                await machines.worker(0, Diary()).start()
            # On a cluster of its own, no machine can come: that is said at once.
            own = RayMachines(RayConfig(cpus=64), echo, (), QUICK)
            with pytest.raises(InputError, match=r"^cluster\.workers: 2 workers need 128 CPUs, .* has 2; "):
                await own.open(2)
            await own.close()  # which leaves alone what it did not start
            assert ray.is_initialized()
        finally:
            await machines.close()

    play(test())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://127.0.0.1:10001", "must be HOST:PORT or auto"),
        ("127.0.0.1", "must be HOST:PORT or auto"),
        ("127.0.0.1:9", "no Ray cluster at 127.0.0.1:9"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str, message: str) -> None:
    async def test() -> None:
        machines = RayMachines(RayConfig(address), echo, (), QUICK)
        try:
            with pytest.raises(InputError, match=f"^cluster.address: {message}"):
                await machines.open(1)
        finally:
            await machines.close()

    play(test())


def test_signals_stay_the_server_s(cluster: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Ray's own handlers print a stack trace at SIGTERM, as if the server had crashed."""

    async def test() -> None:
        heard = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, heard.set)
        machines = RayMachines(RayConfig(cluster.address), echo, (), QUICK)
        try:
            await machines.open(0)
            os.kill(os.getpid(), signal.SIGTERM)
            await heard.wait()
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            await machines.close()

    play(test())
    assert "SIGTERM" not in capfd.readouterr().err


def workers_of(executor: Executor) -> list[Any]:
    workers: Any = executor._workers
    return list(workers._workers)


def pids(executor: Executor) -> list[int]:
    return [worker.process.pid for worker in workers_of(executor)]


async def answers(futures: list[asyncio.Future[Served]]) -> list[Served | Rejected]:
    """All of them are answered one way or the other."""
    done: list[Any] = await asyncio.gather(*futures, return_exceptions=True)
    assert all(isinstance(answer, Served | Rejected) for answer in done), done
    return done


def test_a_process_killed_under_load_costs_no_request_its_answer(cluster: Any, node: Any, tmp_path: Path) -> None:
    async def test() -> None:
        async with working(make_scene(tmp_path), cluster.address) as executor:
            engine, before = executor.engine, pids(executor)
            await until(lambda: are_able(engine))
            asked = await asked_until(
                lambda: engine.workers[0].batch.rows, lambda i: executor.submit(0, f"text {i}", seed=i), 60
            )
            os.kill(before[0], signal.SIGKILL)
            images = [answer.image for answer in await answers(asked) if isinstance(answer, Served)]
            assert images == [str(i).encode() for i in range(60)]
            await until(lambda: executor.faults)
            assert [(fault.worker, fault.kind) for fault in executor.faults][:1] == [(0, "lost")]
            await until(lambda: are_able(engine))
            after = pids(executor)
            assert (after[0] != before[0], after[1] == before[1]) == (True, True)

            for worker in workers_of(executor):  # nobody is back before both are missed
                worker.process.patience = replace(QUICK, wait_s=5.0, longest_wait_s=5.0)
            asked = await asked_until(
                lambda: all(worker.batch.rows for worker in engine.workers),
                lambda i: executor.submit(0, f"text {i}"),
                40,
            )
            for pid in after:
                os.kill(pid, signal.SIGKILL)
            refused = [answer for answer in await answers(asked) if isinstance(answer, Rejected)]
            assert refused
            assert all(answer.lost for answer in refused)
            await until(lambda: engine.floor.workers_up == 2)
            assert isinstance((await answers([executor.submit(0, "again")]))[0], Served)
            assert engine.is_idle()

    play(test())


def test_capacity_goes_and_comes_with_a_machine(cluster: Any, node: Any, tmp_path: Path) -> None:
    async def test() -> None:
        async with working(make_scene(tmp_path), cluster.address) as executor:
            engine = executor.engine
            await until(lambda: are_able(engine))
            asked = [executor.submit(0, "never") for _ in range(20)]
            await until(lambda: all(worker.batch.rows for worker in engine.workers))
            await asyncio.to_thread(cluster.remove_node, node, False)
            done = await answers(asked)
            assert {fault.kind for fault in executor.faults} == {"lost"}
            assert engine.floor.workers_up == 0
            reasons = {answer.reason for answer in done if isinstance(answer, Rejected)}
            assert reasons
            assert all("lost" in reason for reason in reasons), reasons
            # Nobody is there, and that is said at once.
            assert isinstance((await answers([executor.submit(0, "too early")]))[0], Rejected)
            cluster.add_node(num_cpus=2)
            await until(lambda: engine.floor.workers_up == 2)
            done = await answers([executor.submit(0, f"text {i}") for i in range(20)])
            assert all(isinstance(answer, Served) for answer in done)

    play(test())


def test_the_whole_server_on_a_cluster_of_its_own() -> None:
    """Real images of two models' steps, latents that go and come with messages, and Ctrl-C as from a terminal."""
    for package in ("torch", "diffusers", "transformers", "torchmetrics", "DeepCache"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the calibrate extra: {package}")
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        "import sys; from argus_sim.cli import main; sys.exit(main())",
    ]
    command += ["serve", "shapes", "--policy", "nirvana", "--workers", "diffusers", "--zoo", "shapes"]
    command += [
        "--port",
        "0",
        "--set",
        "cluster.workers=1",
        "--set",
        "cluster.kind=ray",
    ]
    command += [word for setting in AMPLE for word in ("--set", setting)]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    images: list[bytes] = []
    variants: list[str] = []
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("serving nirvana at "), line or server.communicate()[1]
        children = descendants(server.pid)
        assert len(children) >= 5  # Ray's own, a worker and the cache

        async def test() -> None:
            async with http(line.split()[-1]) as client:
                asked = {"prompt": "a green cross", "response_format": "b64_json", "seed": 7}
                for _ in range(2):
                    made = await client.post(PATH, json=asked)
                    variants.append(made.headers["x-argus-variant"])
                    images.append(base64.b64decode(made.json()["data"][0]["b64_json"]))
                last = await under_way(
                    client, lambda: client.post(PATH, json={**asked, "prompt": "a red circle"})
                )
                os.killpg(server.pid, signal.SIGINT)
                assert (await last).status_code == 200

        play(test())
        out, err = server.communicate(timeout=LONG_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    assert server.returncode == 0, err
    assert out == ""
    assert all(text.startswith("{") for text in err.splitlines()), err  # logs, one JSON object a line
    # The second starts from the latent of the first, in the same place: it is the same to the byte.
    assert variants == ["shapes-large", "shapes-large/ac-25"]
    assert images[0] == images[1]
    play(until(lambda: all(is_gone(child) for child in children)))


def descendants(pid: int) -> set[int]:
    """Of a process, at any depth, whichever of its threads started them."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found |= {int(child)} | descendants(int(child))
    return found
