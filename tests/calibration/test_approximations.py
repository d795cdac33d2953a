"""Every approximation does what it says and leaves no trace."""

from __future__ import annotations

import importlib.util
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from argus_sim.errors import InputError
from calibration.approximations import LatentRecorder, Run, parse
from calibration.zoo import model, select

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from tests.calibration.make_pipelines import tiny_sd, tiny_sdxl  # noqa: E402

STEPS = 12


def image(pipe: Any, steps: int = STEPS, **options: Any) -> np.ndarray:
    call = {"output_type": "np", "generator": torch.Generator().manual_seed(3), "guidance_scale": 3.0}
    return np.asarray(
        pipe(["a red fox"], num_inference_steps=steps, height=16, width=16, **call | options).images
    )


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("skip", [1, 5, 11])
def test_approximate_caching_with_its_own_latent_is_exact_to_the_bit(build: Any, skip: int) -> None:
    pipe = build()
    recorder = LatentRecorder([skip])
    full = image(pipe, callback_on_step_end=recorder)
    with parse(f"ac-{skip}").applied(pipe):
        again = image(pipe, latents=recorder.latents[skip])
    assert np.array_equal(full, again)
    assert np.array_equal(image(pipe), full)


def test_approximate_caching_runs_only_the_steps_that_remain() -> None:
    pipe = tiny_sd()
    calls = []
    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    with parse("ac-5").applied(pipe):
        image(pipe, latents=torch.zeros(1, 4, 8, 8))
    hook.remove()
    assert len(calls) == STEPS - 5


@pytest.mark.parametrize("name", ["deepcache-3", "tome-50", "int8", "fp8", "deepcache-2+tome-25+int8"])
def test_changes_the_image_while_it_holds_and_reverts_to_the_bit(name: str) -> None:
    pipe = tiny_sd()
    before, keys = image(pipe), list(pipe.unet.state_dict())
    with parse(name).applied(pipe):
        within = image(pipe)
    assert np.isfinite(within).all()
    assert not np.array_equal(before, within)
    assert np.array_equal(image(pipe), before)
    assert list(pipe.unet.state_dict()) == keys


def test_reverts_after_an_error_too() -> None:
    pipe = tiny_sd()
    before = image(pipe)
    with pytest.raises(RuntimeError, match="boom"), parse("ac-3+tome-50+int8").applied(pipe):
        raise RuntimeError("boom")
    assert np.array_equal(image(pipe), before)


def test_eight_bit_weights_are_close_to_the_full_ones() -> None:
    pipe = tiny_sd()
    before = image(pipe)
    for name in ("int8", "fp8"):
        with parse(name).applied(pipe):
            assert np.abs(image(pipe) - before).max() < 0.1, name


def test_runs_are_adjusted() -> None:
    assert parse("ac-20").adjust(Run(50)) == Run(50, 20)
    assert parse("ac-5+steps-25").adjust(Run(50)) == Run(25, 5)
    assert parse("").adjust(Run(50)) == Run(50)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ac20", "no approximation 'ac20'"),
        ("tome-90", "must be in 1..75"),
        ("ac-5+ac-10", "names a strategy twice"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(name)


def test_impossible_runs() -> None:
    with pytest.raises(InputError, match="cannot skip 50 of 50"):
        parse("ac-50").adjust(Run(50))
    with pytest.raises(InputError, match="no fewer"):
        parse("steps-50").adjust(Run(50))


def test_obstacles_are_named() -> None:
    assert "cannot start in the middle" in (parse("ac-5").obstacle(model("lcm"), "cpu") or "")
    assert parse("ac-5").obstacle(model("sdxl"), "cpu") is None
    assert "no middle block" in (parse("deepcache-3").obstacle(model("tiny-sd"), "cpu") or "")
    assert parse("deepcache-3").obstacle(model("small-sd"), "cpu") is None
    for name in ("deepcache-3", "tome-50", "tome-50+int8"):
        assert "U-Nets only" in (parse(name).obstacle(model("flux-schnell"), "cpu") or "")
        assert parse(name).obstacle(model("sdxl"), "cpu") is None


def test_obstacles_of_a_folder_are_those_of_its_own_configuration(tmp_path: Path) -> None:
    for part, config in (("unet", {"down_block_types": ["DownBlock2D"]}), ("transformer", {"num_layers": 3})):
        (tmp_path / part / part).mkdir(parents=True)
        (tmp_path / part / "model_index.json").write_text("{}")
        (tmp_path / part / part / "config.json").write_text(json.dumps(config))
    unet, transformer = select("sd", [f"a={tmp_path / 'unet'}", f"b={tmp_path / 'transformer'}"])
    assert "no attention" in (parse("tome-50").obstacle(unet, "cpu") or "")
    assert parse("deepcache-3").obstacle(unet, "cpu") is None
    assert "U-Nets only" in (parse("deepcache-3").obstacle(transformer, "cpu") or "")


def test_an_interval_longer_than_the_run_saves_nothing() -> None:
    assert parse("deepcache-3").adjust(Run(4)) == Run(4)
    for name, steps in (("deepcache-3", 1), ("deepcache-3+steps-2", 50), ("deepcache-3+ac-8", 10)):
        with pytest.raises(InputError, match="fewer than the interval 3"):
            parse(name).adjust(Run(steps))


def test_compiling_on_a_gpu_needs_a_compiler_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "'triton'" in (parse("compile").obstacle(model("sdxl"), "cuda") or "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert parse("compile").obstacle(model("sdxl"), "cuda") is None
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "C compiler" in (parse("compile").obstacle(model("sdxl"), "cuda") or "")


def test_tokens_are_merged_where_attention_begins_and_by_no_draw_of_others() -> None:
    pipe = tiny_sdxl()  # without attention at full resolution
    exact = image(pipe)
    again = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with parse("tome-50").applied(pipe):
            again += [image(pipe), image(pipe)]
    assert not np.array_equal(again[0], exact)
    assert all(np.array_equal(one, again[0]) for one in again)
    assert np.array_equal(image(pipe), exact)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_the_device_holds_the_denoiser_or_its_copy_never_both(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_sd()
    original, kind = pipe.unet, type(pipe.unet)
    copies: list[Any] = []
    moves = []

    def to(self: Any, where: Any) -> Any:
        if self is not original:
            copies.append(weakref.ref(self))
        moves.append(
            ("original" if self is original else "copy", str(where), sum(r() is not None for r in copies))
        )
        return self

    monkeypatch.setattr(kind, "device", "gpu")
    monkeypatch.setattr(kind, "to", to)
    with parse(name).applied(pipe):
        assert moves == [("original", "cpu", 0), ("copy", "gpu", 1)]
    assert moves[2:] == [("original", "gpu", 0)]


def test_every_model_runs_compiled_and_each_batch_has_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, layers: int) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(layers))

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x).relu()
            return x

    def backend(graph: Any, example: Any) -> Any:
        def run(*inputs: Any) -> Any:
            runs.append(graph)
            return graph(*inputs)

        return run

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **o: compile_module(self, backend=backend, **o))
    kept = []
    for layers in range(1, 8):  # PyTorch's own limit is 8 graphs of a class
        pipe = SimpleNamespace(unet=Network(layers))
        kept.append(pipe)
        runs.clear()
        with parse("compile").applied(pipe), torch.inference_mode():
            for batch in (1, 2, 4, 8):
                pipe.unet(torch.zeros(batch, 4))
        assert len(set(map(id, runs))) == len(runs) == 4, layers
        pipe.unet(torch.zeros(1, 4))
        assert len(runs) == 4
    with parse("compile").applied(kept[0]), pytest.raises(Exception, match="recompile"):
        [kept[0].unet(torch.zeros(batch, 4)) for batch in range(1, 12)]
