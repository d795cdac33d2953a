"""Loading, timing and counting of pipelines, on tiny ones of the real format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from argus_sim.errors import InputError
from calibration import loads, pipelines
from calibration.approximations import EXACT, Run, parse
from calibration.failures import first_line, is_of_the_host, is_out_of_memory
from calibration.hardware import Nvml, describe, resolve_device
from calibration.latency import Workload
from calibration.weights import Weights, locate
from calibration.zoo import ZOOS, ZooModel, model, published_range, select

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from tests.calibration.make_pipelines import SMALL, entry_of, tiny_sd  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine"
    tiny_sd().save_pretrained(path)
    return path


@pytest.mark.parametrize("entry", ZOOS["sd"], ids=lambda entry: entry.name)
def test_every_architecture_has_its_published_size(entry: ZooModel) -> None:
    rows = pipelines.check_parameters(entry)
    assert {component for component, *_ in rows} == set(entry.components)
    published = {component: agree for component, _, text, agree in rows if text}
    assert published == dict.fromkeys(entry.published, True), rows


@pytest.mark.parametrize(
    ("config", "counted"),
    [
        ("sd15", 859_520_964),
        ("small-sd", 579_384_964),
        ("tiny-sd", 323_384_964),
        ("sd21", 865_910_724),
        ("sdxl", 2_567_463_684),
        ("pixart-sigma", 610_856_096),
        ("flux-schnell", 11_891_178_560),
    ],
)
def test_sizes_of_denoisers_to_the_digit(config: str, counted: int) -> None:
    counts = pipelines.count_parameters(select("sd", [config])[0])
    assert counts.get("unet", counts.get("transformer")) == counted


def test_a_published_size_allows_one_percent() -> None:
    assert published_range("123.1M") == (121_869_000, 124_331_000)
    assert published_range("1.333B") == (1_319_670_000, 1_346_330_000)


def test_weights_from_a_folder_give_the_very_same_images(folder: Path) -> None:
    entry = entry_of(folder)
    weights = locate(entry)
    assert weights is not None
    assert weights.origin == "folder"
    pipe = pipelines.load(entry, weights, device="cpu", dtype="fp32")
    side = pipelines.default_side(entry, pipe)
    assert side == 16
    images = [
        Workload(p, device="cpu", steps=3, guidance=3.0, side=side).call(Run(3), ["a fox"] * 2, [1, 2])
        for p in (pipe, tiny_sd())
    ]
    assert np.array_equal(*images)
    assert not np.array_equal(images[0][0], images[0][1])


def test_a_batch_gives_the_images_of_its_members(folder: Path) -> None:
    work = Workload(tiny_sd(), device="cpu", steps=3, guidance=3.0, side=16)
    both = work.call(Run(3), ["a fox", "an owl"], [1, 2])
    assert np.allclose(both[1], work.call(Run(3), ["an owl"], [2])[0], atol=1e-4)


def test_broken_weights_are_one_message(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["x", "y"]}')
    entry = entry_of(tmp_path)
    weights = locate(entry)
    assert weights is not None
    with pytest.raises(InputError, match="the weights of 'mine' cannot be loaded"):
        pipelines.load(entry, weights, device="cpu", dtype="fp32")


def test_weights_that_are_not_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    assert locate(ZOOS["sd"][0], online=False) is None
    assert locate(ZOOS["sd"][0], random_weights=True) == Weights("random", "")


def test_random_weights_run(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = select("sd", ["tiny-sd"])[0]
    full = ZooModel.architecture
    monkeypatch.setattr(ZooModel, "architecture", lambda self, part: full(self, part) | SMALL[part])
    pipe = pipelines.load(entry, Weights("random", ""), device="cpu", dtype="fp32")
    image = Workload(pipe, device="cpu", steps=2, guidance=3.0, side=16).call(Run(2), ["a fox"], [0])
    assert image.shape == (1, 16, 16, 3)
    assert np.isfinite(image).all()


def test_another_scheduler_gets_the_parameters_it_asks_for(folder: Path, tmp_path: Path) -> None:
    import diffusers

    pipe = tiny_sd()
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    pipe.save_pretrained(tmp_path / "mine")
    mine = entry_of(tmp_path / "mine")
    weights = pipelines.Weights("folder", str(tmp_path / "mine"))
    config = pipelines.load(mine, weights, device="cpu", dtype="fp32").scheduler.config
    assert config.beta_end == 0.02
    assert not config.clip_sample  # DDIM's own default cuts latents to -1..1
    config = pipelines.load(
        replace(mine, scheduler_config=model("pixart-sigma").scheduler_config),
        weights,
        device="cpu",
        dtype="fp32",
    ).scheduler.config
    assert (config.clip_sample, config.timestep_spacing) == (False, "trailing")


def test_a_transformer_keeps_its_own_scheduler(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    entry = entry_of(tmp_path)
    assert (entry.scheduler, entry.half) == ("", "bf16")
    assert not entry.can_skip_steps


def test_half_is_what_a_model_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, t=there: t)
        assert pipelines.precision(model("flux-schnell"), "half", "cuda:0") == expected
        assert pipelines.precision(model("sdxl"), "half", "cuda:0") == "fp16"
    assert pipelines.precision(model("sd35-medium"), "fp32", "cpu") == "fp32"
    assert [entry.name for entry in ZOOS["sd"] if entry.half == "bf16"] == [
        "pixart-sigma", "sd35-medium", "flux-schnell",
    ]  # fmt: skip


def test_random_weights_are_as_wide_as_loaded_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    small = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    full = ZooModel.architecture
    monkeypatch.setattr(ZooModel, "architecture", lambda self, part: full(self, part) | small)
    flux = model("flux-schnell")
    pipelines.build_component(flux, "text_encoder_2", device="cpu", dtype="fp32").save_pretrained(tmp_path)
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        ours = pipelines.build_component(flux, "text_encoder_2", device="cpu", dtype=name)
        theirs = transformers.T5EncoderModel.from_pretrained(tmp_path, dtype=dtype)
        assert {n: p.dtype for n, p in ours.named_parameters()} == {
            n: p.dtype for n, p in theirs.named_parameters()
        }


def test_a_vae_that_overflows_in_fp16_is_kept_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    class PixArtLike:
        def __init__(self, upcast: bool) -> None:
            self.vae = torch.nn.Linear(1, 1).half()
            self.vae.config = SimpleNamespace(force_upcast=upcast)

        def set_progress_bar_config(self, **options: Any) -> None:
            pass

    weights = pipelines.Weights("random", "")
    for upcast, dtype, expected in (
        (True, "fp16", torch.float32), (True, "bf16", torch.float16), (False, "fp16", torch.float16),
    ):  # fmt: skip
        monkeypatch.setattr(pipelines, "build_random", lambda *a, upcast=upcast, **k: PixArtLike(upcast))
        pipe = pipelines.load(model("pixart-sigma"), weights, device="cpu", dtype=dtype)
        assert pipe.vae.weight.dtype == expected


def test_random_weights_need_an_architecture(folder: Path) -> None:
    with pytest.raises(InputError, match="random ones make no sense"):
        pipelines.build_random(entry_of(folder), device="cpu", dtype="fp32")


@pytest.mark.parametrize("kind", ["CLIPTextModel", "T5EncoderModel"])
def test_stand_in_tokenizers_fill_the_whole_length(kind: str) -> None:
    tokenizer = pipelines.stand_in_tokenizer(kind)
    ids = tokenizer("a red fox, \u00e9", padding="max_length", max_length=60, truncation=True).input_ids
    assert len(ids) == 60
    assert max(ids) < 49408


class SlowingDown:
    """Time by the work that was done, of a machine that slows down: text takes 3, a step 10, the decoder 5."""

    def __init__(self, pipe: Any) -> None:
        self.done = 0.0
        for module, takes in ((pipe.text_encoder, 3.0), (pipe.unet, 10.0), (pipe.vae.decoder, 5.0)):
            module.register_forward_hook(lambda *_, takes=takes: self.work(takes))

    def work(self, takes: float) -> None:
        self.done += takes

    def mark(self) -> float:
        return self.done + 1e-4 * self.done**2

    def between_s(self, first: float, last: float) -> float:
        return last - first


def test_approximate_caching_takes_what_the_parts_say() -> None:
    pipe = tiny_sd(width=32)
    work = Workload(pipe, device="cpu", steps=20, guidance=3.0, side=32)
    work.clock = SlowingDown(pipe)
    parts = work.parts(1, repeats=3)
    assert parts.total_s == pytest.approx(parts.predicted_s(20), rel=0.02)
    # Text twice: with the prompt and without.
    assert (parts.text_s, parts.step_s, parts.vae_s) == pytest.approx((6.0, 10.0, 5.0), rel=0.15)
    runs = np.array(work.skipping({"mine": parse("ac-12")}, rounds=5)["mine"])
    assert runs.shape == (5, 2)
    assert (np.diff(runs, axis=0) > 0).all()  # it does slow down
    # Of the run before alone it would be a few percent too little, of the one after too much.
    assert runs[:, 0] / runs[:, 1] == pytest.approx(1.0, abs=0.005)


def test_loads_from_disk_and_host_leave_the_pipeline_as_it_was(folder: Path) -> None:
    entry = entry_of(folder)
    weights = locate(entry)
    assert weights is not None
    disk = loads.from_disk(entry, weights, device="cpu", dtype="fp32", repeats=2)
    assert len(disk.seconds) == 2
    assert min(disk.seconds) > 0
    pipe: Any = pipelines.load(entry, weights, device="cpu", dtype="fp32")
    work = Workload(pipe, device="cpu", steps=2, guidance=3.0, side=16)
    before = work.call(Run(2), ["a fox"], [0])
    moves = loads.host_and_device(pipe, device="cpu", repeats=3)
    assert len(moves.host) == len(moves.gpu) == len(moves.evict) == 3
    assert not moves.pinned
    assert np.array_equal(work.call(Run(2), ["a fox"], [0]), before)


@pytest.mark.parametrize(
    ("device", "gpu", "message"),
    [
        (None, 99, "no GPU 99"),
        ("cuda:99", None, "no GPU 99"),
        ("tpu", None, "no device 'tpu'"),
        ("cpu", 0, "give one"),
    ],
)
def test_wrong_devices_are_one_message(device: str | None, gpu: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_device(device, gpu)


def test_the_machine_is_described() -> None:
    hardware = describe("cpu")
    assert hardware.name.startswith("CPU: ")
    assert {"torch", "diffusers", "python"} <= set(hardware.libraries)
    with Nvml("cpu") as nvml:
        assert nvml.energy_j() is None
        assert nvml.now() == nvml.limits() == {}


def test_the_exact_run_is_no_approximation() -> None:
    assert EXACT.adjust(Run(50)) == Run(50)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 17 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert first_line(error)


def test_other_errors_are_not_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert is_of_the_host(RuntimeError("DefaultCPUAllocator: can't allocate memory: 17 bytes"))
    assert not is_of_the_host(RuntimeError("CUDA out of memory"))
