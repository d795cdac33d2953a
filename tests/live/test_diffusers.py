"""Real workers: images of the shapes zoo on the CPU, and what becomes of requests when workers die."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

for package in ("torch", "diffusers", "transformers", "torchmetrics", "DeepCache"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the calibrate extra: {package}", allow_module_level=True)
pytest.importorskip("fastapi", reason="needs the live extra: fastapi")
pytest.importorskip("httpx", reason="needs the test extra: httpx")

from argus_sim.cli import main  # noqa: E402
from argus_sim.errors import InputError  # noqa: E402
from argus_sim.live.server import Service  # noqa: E402
from argus_sim.live.zoo import live_zoo  # noqa: E402
from argus_sim.profile import Profile  # noqa: E402
from argus_sim.serve import LiveConfig, build, choose_policy  # noqa: E402
from tests.live.make_processes import are_able, asked_until, is_gone, play, until  # noqa: E402
from tests.live.make_server import AMPLE, SHAPES, http, running, shapes_scene, under_way  # noqa: E402
from tests.patience import LONG_S  # noqa: E402

PATH = "/v1/images/generations"
SIMULATED = "cluster.cache={kind: simulated, eviction: lru}"
Image = npt.NDArray[np.float32]


def decoded(image: str) -> Image:
    """float32[H, W, 3] in [0, 1]."""
    import PIL.Image

    picture = PIL.Image.open(io.BytesIO(base64.b64decode(image)))
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    return np.asarray(picture, dtype=np.float32) / 255.0


def clip_scores(images: list[Image], texts: list[str]) -> npt.NDArray[np.float64]:
    from calibration.scorers import build
    from calibration.zoo import SHAPES as WEIGHTS

    return build(f"clip={WEIGHTS / 'shapes-clip'}", device="cpu").score(np.stack(images), texts)


def workers_of(service: Service) -> list[Any]:
    workers: Any = service.executor._workers
    return list(workers._workers)


def processes(service: Service) -> list[int]:
    return [worker.process.pid for worker in workers_of(service)]


async def ask(client: Any, prompt: str, **more: Any) -> Any:
    return await client.post(PATH, json={"prompt": prompt, "response_format": "b64_json", **more})


def test_the_openai_client_gets_images_as_good_as_the_profile_says(tmp_path: Path) -> None:
    """With the seeds that calibration used, each image's CLIPScore is the profile's, up to rounding."""
    openai = pytest.importorskip("openai", reason="needs the test extra: openai")
    from calibration.quality import image_seed

    scene = shapes_scene("clipper-ha")
    texts = list(scene.profile.prompt_texts[:12])
    images: list[str] = []

    async def test() -> None:
        async with running(scene, pipelines=SHAPES) as (url, _):
            patient = {"max_retries": 0, "timeout": LONG_S}
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", **patient) as client:
                asked = [
                    client.images.generate(
                        prompt=text, size="32x32", response_format="b64_json",
                        extra_body={"seed": image_seed(index, 0)},
                    )
                    for index, text in enumerate(texts)
                ]  # fmt: skip
                images.extend(made.data[0].b64_json for made in await asyncio.gather(*asked))
                again = await client.images.generate(
                    prompt=texts[3], response_format="b64_json", n=2, extra_body={"seed": image_seed(3, 0)}
                )
            # The second time it runs in another batch, where floating-point numbers may be added up otherwise.
            first, second = (decoded(image.b64_json) for image in again.data)
            assert np.abs(first - decoded(images[3])).max() <= 2 / 255
            assert np.abs(second - first).max() > 0.2

    play(test())
    scores = clip_scores([decoded(image) for image in images], texts)
    quality = scene.profile.table("quality")
    known = quality[(quality["variant"] == "shapes-large") & (quality["metric"] == "clip_score")]
    expected = known[known["seed"] == 0].set_index("prompt")["score"].loc[list(scene.profile.prompts[:12])]
    np.testing.assert_allclose(scores, expected.to_numpy(), atol=0.5)
    strangers = clip_scores([decoded(image) for image in images], texts[1:] + texts[:1])
    assert scores.mean() > strangers.mean() + 10


def test_a_similar_prompt_starts_from_the_stored_latent_of_an_earlier_one() -> None:
    scene = shapes_scene("nirvana")
    first, similar = "a large red circle left of a small blue square", "a red circle left of a small blue square"
    different = "a green cross"
    answers: dict[str, tuple[str, Image]] = {}

    async def test() -> None:
        async with (
            running(scene, pipelines=SHAPES) as (url, service),
            http(url) as client,
        ):
            for name, text, seed in (
                ("in full", first, 7), ("once more", first, 8), ("similar", similar, 9), ("other", different, 10)
            ):  # fmt: skip
                made = await ask(client, text, seed=seed)
                answers[name] = made.headers["x-argus-variant"], decoded(made.json()["data"][0]["b64_json"])
            cache: Any = service.executor._cache
            assert len(cache) == 2  # of the two that were made in full
            assert not cache._held
            metrics = (await client.get("/metrics")).text
            assert 'argus_cache_lookups_total{answer="hit"} 2.0' in metrics

    play(test())
    variants = {name: variant for name, (variant, _) in answers.items()}
    # 0.8 similar or more, by hashed words and pairs of words
    assert variants == {
        "in full": "shapes-large",
        "once more": "shapes-large/ac-25",
        "similar": variants["similar"],
        "other": "shapes-large",
    }
    assert variants["similar"].startswith("shapes-large/ac-")
    # From its own latent the image is the very same, though the second half of the way was all that was run.
    np.testing.assert_allclose(answers["once more"][1], answers["in full"][1], atol=1 / 255)
    picture = answers["similar"][1]
    right, wrong = clip_scores([picture, picture], [similar, different])
    assert right > wrong + 10


def test_a_worker_killed_under_load_costs_no_request_its_answer() -> None:
    """Each is answered: from elsewhere, or with a reason. Then the worker is back."""
    scene = shapes_scene("clipper-ht")

    async def test() -> None:
        async with (
            running(scene, pipelines=SHAPES) as (url, service),
            http(url) as client,
        ):
            engine, before = service.executor.engine, processes(service)
            await until(lambda: are_able(engine))
            asked = await asked_until(
                lambda: engine.workers[0].batch.rows, lambda i: ask(client, f"a red circle {i}"), 60
            )
            os.kill(before[0], signal.SIGKILL)
            responses = await asyncio.gather(*asked)
            assert {r.status_code for r in responses} == {200}, [r.text for r in responses][-1]
            fault = service.executor.faults[0]
            assert (fault.worker, fault.kind) == (0, "lost")

            await until(lambda: are_able(engine))
            after = processes(service)
            assert after[0] != before[0]
            assert after[1] == before[1]
            # Both at once: one reply each, some from before, the others with the reason.
            for worker in workers_of(service):  # nobody is back before that has been seen
                worker.process.patience = replace(worker.process.patience, wait_s=3.0, longest_wait_s=3.0)
            asked = await asked_until(
                lambda: all(worker.batch.rows for worker in engine.workers),
                lambda i: ask(client, f"a blue square {i}"),
                40,
            )
            for pid in after:
                os.kill(pid, signal.SIGKILL)
            responses = await asyncio.gather(*asked)
            refused = [r for r in responses if r.status_code != 200]
            assert refused
            for response in refused:
                assert response.status_code == 503
                assert re.search("no worker is up|failed twice", response.json()["error"]["message"])
            assert (await client.get("/readyz")).status_code == 503

            await until(lambda: are_able(engine))
            assert (await client.get("/readyz")).json() == {"ready": True, "workers_up": 2, "speed": 1.0}
            used = {(await ask(client, "a cyan cross", n=4)).headers["x-argus-worker"] for _ in range(4)}
            assert {worker for workers in used for worker in workers.split(",")} == {"0", "1"}
            assert service.executor.waiting == 0
            assert engine.is_idle()

    play(test())


def test_a_worker_that_dies_while_it_loads_a_model_is_replaced() -> None:
    scene = shapes_scene("static")

    async def test() -> None:
        async with (
            running(scene, pipelines=SHAPES) as (url, service),
            http(url) as client,
        ):
            executor, engine, worker = service.executor, service.executor.engine, workers_of(service)[1]
            load = worker.load

            def die(model: str) -> None:
                worker.load = load
                load(model)
                os.kill(worker.process.pid, signal.SIGKILL)

            # When it is back the policy has it load its model: that is where it is killed again.
            worker.load = die
            os.kill(worker.process.pid, signal.SIGKILL)
            await until(lambda: [f.kind for f in executor.faults] == ["lost", "joined", "lost", "joined"])
            await until(lambda: not engine.workers[1].loading)
            assert (await ask(client, "a green triangle")).status_code == 200
            assert engine.floor.workers_up == 2
            loads = [load.finish_s for load in executor.loads if load.worker == 1]
            assert np.isnan(loads[0])
            assert np.isfinite(loads[-1])

    play(test())


def test_a_client_that_leaves_has_the_image_that_is_under_way_made_and_dropped() -> None:
    async def test() -> None:
        async with running(shapes_scene("nirvana"), pipelines=SHAPES) as (url, service):
            engine = service.executor.engine
            async with http(url) as client:
                asked = asyncio.create_task(client.post(PATH, json={"prompt": "a yellow cross"}))
                await until(lambda: any(worker.batch.rows for worker in engine.workers))
                asked.cancel()
            await until(engine.is_idle)
            cache: Any = service.executor._cache
            assert [entry.text for entry in cache._entries.values()] == ["a yellow cross"]
            assert not service.executor._jobs

    play(test())


def test_ctrl_c_answers_what_is_open_and_leaves_no_process_behind() -> None:
    """The whole group hears of it, as from a terminal."""
    command = [sys.executable, "-c", "import sys; from argus_sim.cli import main; sys.exit(main(sys.argv[1:]))"]
    command += ["serve", "shapes", "--policy", "nirvana", "--workers", "diffusers", "--zoo", "shapes"]
    command += ["--port", "0", "--set", "cluster.workers=2"]
    command += [word for setting in AMPLE for word in ("--set", setting)]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().rsplit(" ", 1)[-1].strip()
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert len(children) >= 3  # two workers and the cache

        async def test() -> None:
            async with http(url) as client:
                asked = await under_way(client, lambda: ask(client, "a green cross"))
                os.killpg(server.pid, signal.SIGINT)
                assert (await asked).status_code == 200

        play(test())
        _, err = server.communicate(timeout=LONG_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    assert server.returncode == 0, err
    assert "Traceback" not in err
    assert "leaked" not in err
    play(until(lambda: all(is_gone(int(child)) for child in children)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--device", "cuda"],
            "error: --device: no GPU 0: PyTorch sees no GPU here; --device cpu works anywhere",
        ),
        (
            ["--embedding", "minilm=nowhere"],
            "error: --embedding: no minilm at 'nowhere' (there is no such folder)",
        ),
    ],
)
def test_what_only_a_process_can_find_out_is_one_message_too(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    command = ["serve", "shapes", "--policy", "nirvana", "--workers", "diffusers", "--zoo", "shapes"]
    assert main([*command, "--port", "0", "--quiet", "--set", "cluster.workers=1", *arguments]) == 2
    out, err = capfd.readouterr()
    *warnings, said = err.splitlines()
    assert said.startswith(message)
    assert {json.loads(line)["level"] for line in warnings} == {"warning"}
    assert out == ""


@pytest.mark.parametrize(
    ("settings", "pipelines", "said"),
    [
        ((), {}, []),
        ((), {"threads": 2}, ["workers have other threads than the profile"]),
        ((), {"device": "cuda"}, ["workers have another device than the profile"]),
        ((), {"embedding": "minilm"}, ["the cache's embedding is not known to be the profile's"]),
        ((SIMULATED,), {}, ["thresholds are held against cosines, not against fitted similarities"]),
        ((SIMULATED, "cluster.cache.scale=cosine"), {}, []),
    ],
)
def test_what_is_other_than_where_its_numbers_are_from_is_said(
    settings: tuple[str, ...], pipelines: dict[str, Any], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    scene = shapes_scene("nirvana", *settings)
    service = build(scene, choose_policy(scene, None), LiveConfig(pipelines=replace(SHAPES, **pipelines)))
    assert [record.message for record in caplog.records] == said
    cache: Any = service.executor._cache
    artefact_s = {5: 0.65, 10: 0.75, 15: 0.85, 20: 0.9, 25: 0.95}
    assert cache.settings.thresholds == (artefact_s if settings else None)


def test_thresholds_are_checked_as_for_a_simulation() -> None:
    scene = shapes_scene("nirvana", "cluster.cache={kind: simulated, eviction: lru, thresholds: {7: 0.5}}")
    with pytest.raises(InputError, match=r"cluster\.cache\.thresholds: needs a similarity for each of the steps"):
        build(scene, choose_policy(scene, None), LiveConfig(pipelines=SHAPES))


def changed(table: str, **values: Any) -> Profile:
    """The shapes profile with values in the row of its last AC variant, or of the manifest."""
    profile = Profile.load("shapes-cpu")
    if table == "manifest":
        return Profile(profile.manifest.model_copy(update=values), {t: profile.table(t) for t in profile.tables})
    tables = {name: profile.table(name).copy() for name in profile.tables}
    for column, value in values.items():
        # A name stands in every table that has variants.
        for frame in [t for t in tables.values() if "variant" in t] if column == "variant" else [tables[table]]:
            frame.loc[frame["variant"] == "shapes-large/ac-25", column] = value
    return Profile(profile.manifest, tables)


def test_the_profile_s_variants_are_the_zoo_s() -> None:
    zoo = live_zoo(Profile.load("shapes-cpu"), "shapes")
    assert len(zoo.recipes) == 12
    assert (zoo.cached_model, zoo.cached_steps) == ("shapes-large", (5, 10, 15, 20, 25))
    assert (zoo.dtype, zoo.side, zoo.threads) == ("fp32", 32, 1)


@pytest.mark.parametrize(
    ("profile", "zoo", "message"),
    [
        (
            changed("variants", skipped_steps=30),
            "shapes",
            "ac-25': it runs 50 steps less 30; the zoo runs 50 less 25",
        ),
        (changed("variants", variant="shapes-large/magic-2"), "shapes", "magic-2': no approximation"),
        (changed("manifest", resolution=(32, 64)), "shapes", "its images are 32 x 64"),
        (changed("manifest", dtype="fp4"), "shapes", "did you mean 'fp32'|its dtype is 'fp4'"),
        (Profile.load("artefact-a100"), "sd", "no weights of"),
    ],
    ids=["steps", "approximation", "resolution", "dtype", "weights"],
)
def test_a_profile_that_the_zoo_does_not_make_is_refused(
    profile: Profile, zoo: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=message):
        live_zoo(profile, zoo)
