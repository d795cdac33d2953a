"""The pretended GPU is as strict as one: what would fail there fails here."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from tests.pretend_cuda import pretended_cuda  # noqa: E402
from tests.pretend_tensors import WORK_S  # noqa: E402


def test_devices_do_not_mix() -> None:
    with pretended_cuda(2):
        there = torch.ones(2, 3, device="cuda")
        assert str(there.device) == "cuda:0"
        for other in (torch.ones(2, 3), torch.ones(2, 3, device="cuda:1")):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                there + other
            with pytest.raises(RuntimeError, match="same device"):
                torch.cat([there, other])
            with pytest.raises(RuntimeError, match="same device"), torch.inference_mode():
                torch.nn.functional.linear(there, other)
        assert (there * torch.tensor(2.0)).tolist() == [[2.0] * 3] * 2  # a number goes with a call
        assert torch.arange(4.0)[torch.tensor(2, device="cuda")] == 2.0
        with pytest.raises(RuntimeError, match="same device"):
            torch.arange(4.0)[torch.tensor([2], device="cuda")]
        with pytest.raises(TypeError, match="to numpy"):
            np.asarray(there)
        assert there.cpu().numpy().sum() == 6.0
    assert not torch.cuda.is_available()


def test_generators_have_a_device() -> None:
    with pretended_cuda():
        here, there = (torch.Generator(device).manual_seed(0) for device in ("cpu", "cuda"))
        assert isinstance(there, torch.Generator)
        assert torch.randn(2, generator=there, device="cuda").is_cuda
        for generator, device in ((here, "cuda"), (there, "cpu")):
            with pytest.raises(RuntimeError, match="device type for generator"):
                torch.randn(2, generator=generator, device=device)


def test_a_module_moves_and_its_memory_is_counted() -> None:
    with pretended_cuda(1, total_memory=1000) as pretence:
        module, gpu = torch.nn.Linear(4, 8, bias=False), pretence.gpus[0]
        weight = module.weight
        module.to("cuda")
        assert module.weight is weight
        assert weight.is_cuda
        assert gpu.allocated == 128
        kept = weight.data
        weight.data = torch.empty(0, device=weight.device)
        assert gpu.allocated == 128  # something has it still
        weight.data = kept
        del kept
        with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory"):
            torch.empty(1000, device="cuda")
        module.to("cpu")
        assert (gpu.allocated, gpu.peak) == (0, 128)
        assert not weight.is_cuda


def test_a_clock_that_is_read_too_early_shows_too_little() -> None:
    with pretended_cuda() as pretence:
        x = torch.ones(2, device="cuda")
        torch.cuda.synchronize()
        start = pretence.perf_counter()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(10):
            x = x + 1
        last.record()
        assert pretence.perf_counter() - start < WORK_S
        with pytest.raises(RuntimeError, match="not ready"):
            first.elapsed_time(last)
        last.synchronize()
        assert first.elapsed_time(last) == pytest.approx(1e4 * WORK_S, rel=0.02)
        assert pretence.perf_counter() - start == pytest.approx(10 * WORK_S, rel=0.02)
