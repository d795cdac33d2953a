"""Calibration on a GPU that is pretended: whatever only a GPU's user would run is run here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from argus_sim.errors import InputError  # noqa: E402
from argus_sim.profile import Profile  # noqa: E402
from calibration import estimate, latency, loads, pipelines, runner, scorers  # noqa: E402
from calibration.approximations import Run, parse  # noqa: E402
from calibration.cli import main  # noqa: E402
from calibration.hardware import Nvml, resolve_device  # noqa: E402
from calibration.latency import Workload  # noqa: E402
from calibration.measure import carry_out, prepare  # noqa: E402
from calibration.plan import Cell  # noqa: E402
from calibration.progress import Silent  # noqa: E402
from calibration.store import Store  # noqa: E402
from calibration.text import neighbours  # noqa: E402
from calibration.weights import Weights  # noqa: E402
from calibration.zoo import ZooModel, model  # noqa: E402
from tests.calibration.make_pipelines import SMALL_OF, entry_of, tiny_scorer  # noqa: E402
from tests.calibration.make_runs import wishes  # noqa: E402
from tests.pretend_cuda import POWER_W, pretended_cuda  # noqa: E402
from tests.pretend_tensors import PINNED_BYTES_PER_S, CudaError, Pretence  # noqa: E402

STEPS = 10


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretence]:
    """Two GPUs, and the clock of their host."""
    with pretended_cuda(2) as pretence:
        be_quick(monkeypatch, pretence)
        yield pretence


def be_quick(patch: pytest.MonkeyPatch, pretence: Pretence) -> None:
    clock = SimpleNamespace(perf_counter=pretence.perf_counter, sleep=pretence.sleep)
    for module in (loads, latency, estimate):
        patch.setattr(module, "time", clock)
    patch.setattr(estimate, "_GPU_SIDE", 64)
    patch.setattr(runner, "SKIPPING_ROUNDS", 1)


def on_gpu(folder: Path, number: int = 0, dtype: str = "fp32") -> Workload:
    entry = entry_of(folder)
    pipe = pipelines.load(entry, Weights("folder", str(folder)), device=f"cuda:{number}", dtype=dtype)
    return Workload(pipe, device=f"cuda:{number}", steps=STEPS, guidance=7.5, side=16)


def on_cpu(folder: Path) -> Workload:
    pipe = pipelines.load(entry_of(folder), Weights("folder", str(folder)), device="cpu", dtype="fp32")
    return Workload(pipe, device="cpu", steps=STEPS, guidance=7.5, side=16)


# ---- the whole of it


class StopAfterLatency(Silent):
    """As someone who presses Ctrl-C; the GPU is hot by then."""

    def __init__(self, pretence: Pretence) -> None:
        self._pretence = pretence

    def end(self, cell: Cell, record: dict[str, Any]) -> None:
        if cell.kind == "latency" and cell.variant == "big/steps-4":
            self._pretence.slowness = 1.5
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def done(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pretence]:
    """A calibration that is begun on GPU 0 and goes on, by command line, on GPU 1."""
    out = tmp_path_factory.mktemp("gpu") / "gpu"
    with pretended_cuda(2) as pretence, pytest.MonkeyPatch.context() as patch:
        be_quick(patch, pretence)
        w = wishes(
            zoo, out, device=None, gpu=0, approximations=("ac-6", "steps-4"), batch_sizes=(1,), prompts="2",
            cell_seconds=0.001,
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            carry_out(prepare(w, lambda text: None), w, StopAfterLatency(pretence))
        assert pretence.gpus[1].peak == 0
        pretence.gpus[0].busy_s = 0.0
        assert main(["--gpu", "1", "--out", str(out), "--resume", "--quiet"]) == 0
    return out, pretence


def test_a_gpu_is_calibrated_and_its_profile_says_so(done: tuple[Path, Pretence]) -> None:
    out, pretence = done
    profile = Profile.load(out)
    profile.validate()
    manifest: Any = profile.manifest
    assert [v.name for v in profile.variants] == ["big", "big/ac-6", "big/steps-4"]
    assert (manifest.gpu, manifest.driver, manifest.dtype) == ("Pretended GPU 80GB", "590.12", "fp16")
    assert manifest.libraries["cuda"] == "13.0"
    machine = manifest.generator["machine"]
    assert (machine["power_limit_w"], machine["max_sm_clock_mhz"]) == (700.0, 1755)
    assert machine["memory_bytes"] == pretence.gpus[1].total_memory
    assert manifest.generator["latency"]["big--b1"]["clocks"] == {
        "sm_clock_mhz": 1755, "memory_clock_mhz": 2619, "temperature_c": 61,
    }  # fmt: skip
    table = profile.table("latency")
    short = int((table["samples"] * table["mean_s"] < 1.0).sum())
    assert short
    assert any(
        note.startswith(f"{short} of 3 energies are of less than 1 s") for note in manifest.generator["notes"]
    )
    assert any("the base took 1.5" in note for note in manifest.generator["notes"])  # it was hot by then
    assert not any("pageable" in note for note in manifest.generator["notes"])
    assert (np.isfinite(profile.relative_quality())).all()


def test_energy_is_that_of_a_run(done: tuple[Path, Pretence]) -> None:
    table = Profile.load(done[0]).table("latency")
    # A GPU that is given one run after the other never rests.
    np.testing.assert_allclose(table["energy_j"], POWER_W * table["mean_s"], rtol=0.01)


def test_memory_is_the_peak_of_a_run(done: tuple[Path, Pretence], zoo: Path) -> None:
    memory = Profile.load(done[0]).table("variants").set_index("variant")["memory_bytes"]
    weights = pipelines.weight_bytes(on_cpu(zoo / "big").pipe) // 2
    assert (memory > weights).all()
    assert (memory < 2 * weights).all()


def test_only_the_gpu_that_was_named_is_used_and_nothing_stays_on_it(done: tuple[Path, Pretence]) -> None:
    first, second = done[1].gpus
    assert first.busy_s == 0.0
    assert second.busy_s > 0.0
    assert (first.allocated, second.allocated) == (0, 0)


def test_loads_are_timed_to_their_end(done: tuple[Path, Pretence]) -> None:
    record = json.loads((done[0].with_name("gpu.run") / "cells/load--big.json").read_text())
    moved_s = record["weight_bytes"] / PINNED_BYTES_PER_S
    assert record["pinned"]
    assert min(record["host_s"]) >= moved_s
    assert min(record["disk_s"]) > max(record["host_s"])  # from memory that is not pinned
    assert max(record["gpu_s"]) < min(record["host_s"])
    assert len(record["evict_s"]) == 3


# ---- what is done to a pipeline


@pytest.mark.parametrize(
    "name", ["", "steps-4", "deepcache-3", "tome-50", "int8", "fp8", "deepcache-3+tome-50+int8"]
)
def test_approximations_work_on_a_gpu_and_give_the_images_of_the_cpu(
    name: str, zoo: Path, cuda: Pretence
) -> None:
    approximation = parse(name)
    run, images = approximation.adjust(Run(STEPS)), []
    for work in (on_cpu(zoo / "small"), on_gpu(zoo / "small", 1)):
        before = cuda.gpus[1].allocated
        with approximation.applied(work.pipe):
            images.append(work.call(run, ["a fox", "an owl"], [1, 2]))
        assert cuda.gpus[1].allocated == pytest.approx(before, abs=4096)  # undone
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_and_stored_latents(dtype: str, zoo: Path, cuda: Pretence) -> None:
    work, approximation = on_gpu(zoo / "small", dtype=dtype), parse("ac-6")
    with approximation.applied(work.pipe):
        first = work.timed(approximation, 2)()
        assert first > 0.0
        latents = work.latents(2, 6)
        assert str(latents.device) == "cuda:0"
        assert np.isfinite(work.call(Run(STEPS, 6), ["a", "b"], [1, 2], latents=latents)).all()


def test_a_latency_is_the_gpus_time_and_its_parts_add_up(zoo: Path, cuda: Pretence) -> None:
    work, gpu = on_gpu(zoo / "small"), cuda.gpus[0]
    once = work.timed(parse(""), 1)
    before = gpu.busy_s
    seconds = once()
    assert seconds == pytest.approx(gpu.busy_s - before, rel=0.01)
    parts = work.parts(1, repeats=1)
    assert parts.total_s == pytest.approx(seconds, rel=0.01)
    assert parts.step_s * STEPS + parts.text_s + parts.vae_s + parts.other_s == pytest.approx(parts.total_s)
    assert min(parts.text_s, parts.vae_s, parts.denoiser_s) > 0.0


def test_eviction_gives_memory_back(zoo: Path, cuda: Pretence, monkeypatch: pytest.MonkeyPatch) -> None:
    work, gpu, seen = on_gpu(zoo / "small"), cuda.gpus[0], []
    empty = torch.cuda.empty_cache

    def watched() -> None:
        empty()
        seen.append(gpu.allocated)

    monkeypatch.setattr(torch.cuda, "empty_cache", watched)
    before = work.call(Run(2), ["a"], [1])
    moves = loads.host_and_device(work.pipe, device="cuda:0", repeats=2)
    assert moves.pinned
    assert max(seen) < 0.01 * pipelines.weight_bytes(work.pipe)
    np.testing.assert_array_equal(work.call(Run(2), ["a"], [1]), before)
    cuda.pinnable = 1000
    assert not loads.host_and_device(work.pipe, device="cuda:0", repeats=1).pinned


@pytest.mark.parametrize("name", sorted(SMALL_OF))
def test_random_weights_of_every_kind_run_on_a_gpu(
    name: str, cuda: Pretence, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = ZooModel.architecture
    monkeypatch.setattr(ZooModel, "architecture", lambda self, part: full(self, part) | SMALL_OF[self.name][part])
    entry = replace(model(name), steps=min(model(name).steps, STEPS))
    pipe = pipelines.load(entry, Weights("random", ""), device="cuda:0", dtype="half")
    work = Workload(
        pipe, device="cuda:0", steps=entry.steps, guidance=entry.guidance, side=32,
        options={**entry.options, **({"use_resolution_binning": False} if name.startswith("pixart") else {})},
    )  # fmt: skip
    assert np.isfinite(work.call(Run(entry.steps), ["a fox"], [1])).all()
    parts = work.parts(1, repeats=1)
    assert parts.step_s * entry.steps > 0.5 * (parts.total_s - parts.vae_s - parts.text_s)
    assert parts.step_s < 2.0 * parts.denoiser_s / entry.steps
    if entry.can_skip_steps:
        approximation = parse("ac-6")
        with approximation.applied(pipe):
            assert 0.0 < work.timed(approximation, 1)() < parts.total_s


def test_random_weights_go_to_the_disk_and_come_back(
    tmp_path: Path, cuda: Pretence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU holds the model once, not twice."""
    full = ZooModel.architecture
    monkeypatch.setattr(ZooModel, "architecture", lambda self, part: full(self, part) | SMALL_OF["sdxl"][part])
    w = wishes(
        tmp_path, tmp_path / "out", models=("sdxl",), device=None, gpu=1, random_weights=True, scorers=(),
        approximations=("steps-4",), prompts="2",
    )  # fmt: skip
    p = prepare(w, lambda text: None)
    plan = replace(p.plan, cells=tuple(cell for cell in p.plan.cells if cell.kind == "load"))
    store = Store(p.out)
    with store:
        similarity = neighbours(list(p.prompts["prompt"]), list(p.prompts["text"]), "ngrams")
        assert runner.Calibration(
            p.settings, plan, p.entries, p.weights, p.prompts, similarity, store, progress=Silent()
        ).run()
    record: Any = store.get("load--sdxl")
    assert (record["status"], record["dtype"], record["pinned"]) == ("ok", "fp16", True)
    assert len(record["disk_s"]) == len(record["host_s"]) == 3
    assert record["file_bytes"] >= record["weight_bytes"] > cuda.gpus[1].peak / 2
    assert (cuda.gpus[0].peak, cuda.gpus[1].allocated) == (0, 0)


def test_compilation_says_what_a_gpu_needs_for_it(
    cuda: Pretence, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "triton" else find(name, *a)
    )
    arguments = ["--gpu", "0", "--zoo", "shapes", "--approximations", "compile", "--plan-only"]
    assert main(arguments) == 2
    assert "shapes-large/compile: torch.compile needs the package 'triton' on a GPU" in capsys.readouterr().err


# ---- memory that ends


def test_what_does_not_fit_is_recorded_and_the_rest_goes_on(zoo: Path, tmp_path: Path, cuda: Pretence) -> None:
    """Neither a batch of 32 nor a scorer beside the model has room; what they took is given back each time."""
    gpu = cuda.gpus[0]
    work = on_gpu(zoo / "small", dtype="fp16")
    with parse("steps-4").applied(work.pipe):
        work.timed(parse("steps-4"), 1)()
    del work
    gpu.total_memory, out = gpu.peak + (1 << 19), tmp_path / "full"
    loads.release("cuda:0")
    assert gpu.allocated == 0
    w = wishes(
        zoo, out, models=(f"small={zoo / 'small'}",), device=None, gpu=0, approximations=("steps-4",),
        batch_sizes=(1, 32), prompts="2", scorers=(f"pickscore={zoo / 'judge'}",), metric="pick_score",
        cell_seconds=0.001,
    )  # fmt: skip
    with pytest.raises(InputError, match="the base variant 'small' is not done"):
        carry_out(prepare(w, lambda text: None), w, Silent())
    with Store(out) as store:
        status = {key: store.get(key)["status"] for key in store.done()}  # type: ignore[index]
        because = {key: store.get(key).get("because", "") for key in store.done()}  # type: ignore[union-attr]
    assert status == {
        "load--small": "ok", "parts--small": "ok", "drift--small--0": "ok", "drift--small--1": "ok",
        "latency--small--b1": "ok", "latency--small~steps-4--b1": "ok",
        "idle--small--b1": "ok", "idle--small~steps-4--b1": "ok",
        "latency--small--b32": "does not fit", "latency--small~steps-4--b32": "does not fit",
        "quality--small--s0--c0000": "does not fit", "quality--small~steps-4--s0--c0000": "failed",
    }  # fmt: skip
    assert because["latency--small--b32"].startswith("CUDA out of memory")
    assert because["quality--small--s0--c0000"].startswith("CUDA out of memory")
    assert gpu.allocated == 0


@pytest.mark.parametrize(
    "error",
    ["CUDA error: CUDA-capable device(s) is/are busy or unavailable", "CUDA error: no kernel image is available"],
)
def test_a_gpu_that_cannot_be_used_is_one_message(
    error: str, cuda: Pretence, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert resolve_device("cuda", None) == "cuda:0"

    def broken(*args: Any, **options: Any) -> Any:
        raise CudaError(error + "\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setattr(torch, "ones", broken)
    assert main(["--gpu", "1", "--zoo", "shapes", "--plan-only"]) == 2
    assert capsys.readouterr().err == f"error: --gpu: GPU 1 cannot be used: {error}\n"
    assert main(["--gpu", "2", "--zoo", "shapes", "--plan-only"]) == 2
    assert "no GPU 2: there are 2 GPUs, numbered from 0" in capsys.readouterr().err


def test_a_full_gpu_is_one_message(zoo: Path, tmp_path: Path, cuda: Pretence, capsys: Any) -> None:
    """Something else runs there."""
    cuda.gpus[0].allocated = cuda.gpus[0].total_memory - 1000
    arguments = [
        "--gpu",
        "0",
        "--models",
        f"small={zoo / 'small'}",
        "--latency-only",
        "--out",
        str(tmp_path / "x"),
    ]
    assert main([*arguments, "--quiet"]) == 2
    assert "error: cuda:0 has no memory left, even for a probe: CUDA out of memory" in capsys.readouterr().err
    cuda.gpus[0].allocated = 0


# ---- what is asked of the driver


@pytest.mark.parametrize(("change", "known"), [({}, True), ({"mig": True}, False), ({"has_energy": False}, None)])
def test_what_a_gpu_does_not_tell_is_absent(
    change: dict[str, bool], known: bool | None, cuda: Pretence, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pynvml

    for name, value in change.items():
        monkeypatch.setattr(pynvml, name, value, raising=False)
    with Nvml("cuda:1") as nvml:
        assert (nvml.energy_j() is not None) == bool(known)
        assert bool(nvml.now()) == bool(nvml.limits()) == (known is not False)
        assert nvml.driver() == "590.12"


def test_a_gpu_without_bf16_runs_in_fp16(cuda: Pretence) -> None:
    assert pipelines.precision(model("flux-schnell"), "half", "cuda:0") == "bf16"
    cuda.bf16 = False
    assert pipelines.precision(model("flux-schnell"), "half", "cuda:0") == "fp16"


# ---- scorers


def test_scorers_rate_on_a_gpu_as_on_a_cpu(tmp_path: Path, cuda: Pretence) -> None:
    folder, images = tiny_scorer(tmp_path), np.random.default_rng(1).random((2, 16, 16, 3)).astype(np.float32)
    texts = ["a fox", "an owl " * 100]
    for name in ("clip", "pickscore"):
        here, there = (scorers.build(f"{name}={folder}", device=device) for device in ("cpu", "cuda:1"))
        np.testing.assert_allclose(here.score(images, texts), there.score(images, texts), rtol=1e-5)
        if isinstance(here, scorers.ClipScorer) and isinstance(there, scorers.ClipScorer):
            np.testing.assert_allclose(here.features(images), there.features(images), rtol=1e-4, atol=1e-6)
    here_s, there_s = (scorers.ssim(images, images[::-1], device=device) for device in ("cpu", "cuda:1"))
    np.testing.assert_allclose(here_s, there_s, rtol=1e-5)
    assert cuda.gpus[0].peak == 0


def test_lpips_leaves_nothing_on_the_gpu(cuda: Pretence, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed after images were rated has the memory that it would have had before."""

    class Distance(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1000))

        def forward(self, a: Any, b: Any, normalize: bool) -> Any:
            return ((a - b).abs() * self.weight[0]).mean()

    network = Distance()
    monkeypatch.setattr(scorers, "lpips_network", lambda: network)
    images = np.random.default_rng(1).random((2, 16, 16, 3)).astype(np.float32)
    expected = np.abs(images - images[::-1]).mean((1, 2, 3))
    np.testing.assert_allclose(scorers.lpips(images, images[::-1], device="cuda:0"), expected, rtol=1e-5)
    assert cuda.gpus[0].peak >= 4000
    assert cuda.gpus[0].allocated == 0
