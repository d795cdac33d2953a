"""What a worker process does with a GPU that is pretended: the same images, on the GPU of its number."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

for package in ("torch", "diffusers", "transformers", "torchmetrics", "DeepCache"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the calibrate extra: {package}", allow_module_level=True)
pytest.importorskip("fastapi", reason="needs the live extra: fastapi")
pytest.importorskip("httpx", reason="needs the test extra: httpx")

from argus_sim.errors import InputError  # noqa: E402
from argus_sim.live import scoring  # noqa: E402
from argus_sim.live.channel import Failed  # noqa: E402
from argus_sim.live.painter import Load, Loaded, Paint, Painted, Painter, Time, Timed, Wish, prepare  # noqa: E402
from argus_sim.live.processes import Kept  # noqa: E402
from argus_sim.live.workers import ThisMachine  # noqa: E402
from argus_sim.live.zoo import LiveZoo, live_zoo  # noqa: E402
from argus_sim.profile import Profile  # noqa: E402
from calibration.zoo import SHAPES as WEIGHTS  # noqa: E402
from tests.calibration.conftest import one_thread  # noqa: E402, F401
from tests.live.make_processes import play, until  # noqa: E402
from tests.live.make_server import SHAPES, http, running, shapes_scene  # noqa: E402
from tests.pretend_cuda import pretended_cuda  # noqa: E402
from tests.pretend_tensors import Pretence  # noqa: E402

TEXTS = ("a large red circle left of a small blue square", "a green cross")


@pytest.fixture(scope="module")
def zoo() -> LiveZoo:
    """Of ten steps, of which five or none are skipped."""
    made = live_zoo(Profile.load("shapes-cpu"), "shapes", device="cuda")
    entries = {name: replace(entry, steps=10) for name, entry in made.entries.items()}
    return replace(made, entries=entries)


@pytest.fixture
def cuda() -> Iterator[Pretence]:
    with pretended_cuda(2) as pretence:
        yield pretence


def of(zoo: LiveZoo, name: str) -> int:
    return [recipe.name for recipe in zoo.recipes].index(name)


def decoded(image: bytes | None) -> npt.NDArray[np.float64]:
    assert image is not None
    return np.asarray(PIL.Image.open(io.BytesIO(image)), dtype=np.float64)


def painted(handle: Any, *message: Any) -> Painted:
    answer = handle(Paint(*message))
    assert isinstance(answer, Painted)
    return answer


def test_a_worker_paints_on_the_gpu_of_its_number_what_a_cpu_would(
    zoo: LiveZoo, cuda: Pretence, tmp_path: Path
) -> None:
    full, skipping = of(zoo, "shapes-large"), of(zoo, "shapes-large/ac-5")
    files = [tmp_path / f"{i}.latents.safetensors" for i in range(2)]
    wishes = tuple(Wish(text, 7 + i, keep=file) for i, (text, file) in enumerate(zip(TEXTS, files, strict=True)))
    handle = prepare(zoo, 1)
    assert handle(Load("shapes-large")) == Loaded("shapes-large")
    made = painted(handle, full, wishes)
    assert made.kept == tuple(files)
    # Stored latents are read from disk, into the host's memory.
    starts = tuple(Wish(text, 0, start=file) for text, file in zip(TEXTS, files, strict=True))
    assert painted(handle, skipping, starts).images == made.images
    assert painted(handle, of(zoo, "shapes-large/deepcache-3"), wishes[:1]).images[0] != made.images[0]
    assert painted(handle, full, wishes, True).kept
    here = Painter(replace(zoo, device="cpu"), "cpu")
    here.load("shapes-large")
    for mine, theirs in zip(here.paint(zoo.recipes[full], wishes).images, made.images, strict=True):
        assert np.abs(decoded(mine) - decoded(theirs)).max() <= 2
    timed = handle(Time(skipping, 1, 0.0))
    assert isinstance(timed, Timed)
    assert min(timed.seconds) > 0.0
    before = cuda.gpus[1].allocated
    handle(Load("shapes-tiny"))
    assert 0 < cuda.gpus[1].allocated < before
    assert cuda.gpus[0].busy_s == cuda.gpus[0].peak == 0


def test_a_worker_without_a_gpu_of_its_number_is_one_message(zoo: LiveZoo, cuda: Pretence) -> None:
    with pytest.raises(InputError, match="no GPU 2: there are 2 GPUs, numbered from 0"):
        prepare(zoo, 2)


class InThisProcess(Kept):
    """A worker's life without a process of its own: the pretence holds in this one only."""

    pid = None

    async def _live(self, ready: asyncio.Future[None]) -> str:
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()
        try:
            handle = self._prepare(*self._args)
            self._set_up(ready)
            while True:
                self._hear(handle(pickle.loads(await self._messages.get())))
        except Exception as error:
            self._failed = Failed.of(error)
        return self._failed.reason

    def _post(self, message: Any) -> None:
        self._messages.put_nowait(pickle.dumps(message))


def test_a_server_on_gpus_paints_and_gets_over_memory_that_ends(
    cuda: Pretence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ThisMachine,
        "worker",
        lambda self, number, owner: InThisProcess(
            f"worker {number}", prepare, (self._zoo, number), owner, self._patience
        ),
    )
    scene = shapes_scene("nirvana", "cluster.workers=1")

    async def test() -> None:
        async with (
            running(scene, pipelines=replace(SHAPES, device="cuda")) as (url, service),
            http(url) as client,
        ):

            async def ask(prompt: str) -> Any:
                return await client.post("/v1/images/generations", json={"prompt": prompt, "seed": 1})

            lost, reasons = service.executor.worker_lost, []

            def heard(now: float, worker: int, why: str) -> None:
                reasons.append(why)
                lost(now, worker, why)

            monkeypatch.setattr(service.executor, "worker_lost", heard)
            gpu, weights = cuda.gpus[0], cuda.gpus[0].allocated
            assert weights > 0
            made = [await ask(TEXTS[0]) for _ in range(2)]
            assert [response.headers["x-argus-variant"] for response in made] == [
                "shapes-large", "shapes-large/ac-25",
            ]  # fmt: skip
            assert gpu.allocated < 1.5 * weights
            room, gpu.total_memory = gpu.total_memory, gpu.allocated + 1000
            failed = await ask(TEXTS[1])
            assert failed.status_code == 503
            assert service.executor.faults[0].kind == "lost"
            assert reasons[0].startswith("OutOfMemoryError: CUDA out of memory")
            gpu.total_memory = room
            await until(lambda: service.executor.engine.floor.workers_up == 1)
            await until(lambda: not service.executor.engine.workers[0].loading)
            assert (await ask(TEXTS[0])).status_code == 200

    play(test())


def test_live_images_are_rated_on_the_cpu_where_the_server_leaves_no_room(cuda: Pretence) -> None:
    images, judge = (
        np.random.default_rng(1).random((2, 32, 32, 3)).astype(np.float32),
        f"clip={WEIGHTS / 'shapes-clip'}",
    )
    _, on_gpu = scoring._rated(judge, images, list(TEXTS))
    busy_s = cuda.gpus[0].busy_s
    assert busy_s > 0.0
    cuda.gpus[0].total_memory = 1000
    _, on_cpu = scoring._rated(judge, images, list(TEXTS))
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-5)
