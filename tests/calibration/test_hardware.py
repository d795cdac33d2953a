"""What NVML is asked, and of which GPU: on a stand-in for it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from calibration.hardware import Nvml
from calibration.runner import Calibration

torch = pytest.importorskip("torch", reason="torch is not installed")


class FakeNvml:
    """Two GPUs in another order than CUDA's; a joule passes with every question for energy."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "mem", "temperature"

    class NVMLError(Exception):
        pass

    def __init__(self, mig: Any = None) -> None:
        self.mig, self.energy_j = mig, 0.0

    def nvmlInit(self) -> None:
        pass

    nvmlShutdown = nvmlInit

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in ("GPU-aaa", "GPU-bbb"):
            raise self.NVMLError("not found")
        return uuid

    def nvmlDeviceGetMigMode(self, handle: str) -> Any:
        if self.mig is None:
            raise self.NVMLError("not supported")
        return self.mig

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> float:
        return 1e3 * self.energy_j

    def nvmlDeviceGetClockInfo(self, handle: str, kind: str) -> int:
        return {"sm": 1980, "mem": 2619}[kind]

    nvmlDeviceGetMaxClockInfo = nvmlDeviceGetClockInfo

    def nvmlDeviceGetTemperature(self, handle: str, kind: str) -> int:
        return 55

    def nvmlDeviceGetPowerManagementLimit(self, handle: str) -> int:
        return 700_000


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CUDA's devices, by UUID."""
    uuids = ["bbb", "aaa"]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index]))
    return uuids


def test_the_gpu_is_the_one_that_cuda_means(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    for index, handle in enumerate(("GPU-bbb", "GPU-aaa")):
        with Nvml(f"cuda:{index}") as nvml:
            assert nvml._handle == handle
            assert nvml.energy_j() == 0.0
            assert nvml.now() == {"sm_clock_mhz": 1980, "memory_clock_mhz": 2619, "temperature_c": 55}
            assert nvml.limits() == {"max_sm_clock_mhz": 1980, "power_limit_w": 700.0}


@pytest.mark.parametrize(("mig", "known"), [([0, 1], True), ([1, 1], False)])
def test_a_slice_of_a_gpu_has_no_energy_of_its_own(
    shown: Any, monkeypatch: pytest.MonkeyPatch, mig: Any, known: bool
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(mig))
    with Nvml("cuda:0") as nvml:
        assert (nvml.energy_j() is not None) == bool(nvml.now()) == bool(nvml.limits()) == known
        assert nvml.driver() == "580.1"


def test_a_device_that_nvml_does_not_know(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    shown[0] = "MIG-ccc"
    with Nvml("cuda:0") as nvml:
        assert nvml.energy_j() is None


def test_energy_is_that_of_the_samples(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    first = [True]

    def once() -> float:
        fake.energy_j += 1000.0 if first else 7.0  # it compiles
        first.clear()
        return 1.0

    settings = SimpleNamespace(device="cuda:0", round_seconds=0.001, rounds=1)
    calibration: Any = SimpleNamespace(settings=settings)
    samples, energy_j, clocks = Calibration._measured(calibration, once)
    assert len(samples.seconds) >= 3
    assert energy_j == pytest.approx(7.0)
    # Its counter moves in steps: where it has not moved, the work took some energy all the same.
    assert Calibration._measured(calibration, lambda: 1.0)[1] is None
    assert clocks["sm_clock_mhz"] == 1980
