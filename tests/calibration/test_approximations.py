"""Every approximation does what it says and leaves no trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from argus_sim.errors import InputError
from calibration.approximations import LatentRecorder, Run, parse

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
    assert "cannot start in the middle" in (parse("ac-5").obstacle(False, "cpu") or "")
    assert parse("ac-5").obstacle(True, "cpu") is None
