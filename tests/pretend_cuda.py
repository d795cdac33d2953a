"""What a pretended CUDA answers in place of ``torch.cuda`` and of the driver; and the context of it all."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from tests.pretend_tensors import AnyGenerator, CudaError, Functions, Gpu, Operators, Pretence

POWER_W: Final = 300.0


def _event(pretence: Pretence) -> Any:
    class Event:
        def __init__(self, enable_timing: bool = False, **_: Any) -> None:
            self._timed, self._at = enable_timing, None

        def record(self, stream: Any = None) -> None:
            self._gpu = pretence.current
            self._at = max(pretence.gpus[self._gpu].free_s, pretence.host_s)

        def query(self) -> bool:
            return self._at is None or self._at <= pretence.host_s

        def synchronize(self) -> None:
            pretence.host_s = max(pretence.host_s, self._at or 0.0)

        def elapsed_time(self, end: Any) -> float:
            if not (self._timed and end._timed) or self._at is None or end._at is None:
                raise RuntimeError("CUDA error: invalid resource handle")
            if not (self.query() and end.query()):
                raise RuntimeError("CUDA error: device not ready")
            if self._gpu != end._gpu:
                raise RuntimeError("CUDA error: invalid resource handle")
            return 1e3 * (end._at - self._at)

    return Event


def _cuda(p: Pretence) -> dict[str, Any]:
    """The functions of ``torch.cuda``."""

    def index(device: Any = None) -> int:
        if isinstance(device, int):
            return device
        return p.current if device is None else int(p.device(torch.device(device)).index)

    def of(device: Any = None) -> Gpu:
        return p.gpus[index(device)]

    def set_device(device: Any) -> None:
        if not 0 <= index(device) < len(p.gpus):
            raise CudaError("CUDA error: invalid device ordinal")
        p.current = index(device)

    def empty_cache() -> None:
        for gpu in p.gpus:
            gpu.reserved = gpu.allocated

    def properties(device: Any = None) -> Any:
        gpu = of(device)
        return types.SimpleNamespace(
            name=gpu.name,
            uuid=gpu.uuid,
            total_memory=gpu.total_memory,
            major=9,
            minor=0,
            multi_processor_count=132,
        )

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: len(p.gpus),
        "current_device": lambda: p.current,
        "set_device": set_device,
        "get_device_properties": properties,
        "get_device_name": lambda device=None: of(device).name,
        "get_device_capability": lambda device=None: (9, 0) if p.bf16 else (7, 5),
        "is_bf16_supported": lambda including_emulation=True: p.bf16 or including_emulation,
        "synchronize": lambda device=None: p.wait(index(device)),
        "empty_cache": empty_cache,
        "ipc_collect": lambda: None,
        "memory_allocated": lambda device=None: of(device).allocated,
        "max_memory_allocated": lambda device=None: of(device).peak,
        "memory_reserved": lambda device=None: of(device).reserved,
        "max_memory_reserved": lambda device=None: of(device).peak_reserved,
        "reset_peak_memory_stats": lambda device=None: of(device).reset_peak(),
        "mem_get_info": lambda device=None: (
            of(device).total_memory - of(device).reserved,
            of(device).total_memory,
        ),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "Event": _event(p),
    }


class PretendedNvml(types.ModuleType):
    """pynvml of a driver whose GPUs are in another order than CUDA's.

    Attributes:
        mig: Whether the GPUs are sliced.
        has_energy: Whether they count energy.
    """

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "mem", "temperature"
    mig, has_energy = False, True

    class NVMLError(Exception):
        pass

    def __init__(self, pretence: Pretence) -> None:
        super().__init__("pynvml")
        self._p, self._users = pretence, 0

    def nvmlInit(self) -> None:
        self._users += 1

    def nvmlShutdown(self) -> None:
        self._users -= 1

    def _known(self, handle: Any) -> Gpu:
        if not self._users or not isinstance(handle, Gpu):
            raise self.NVMLError("uninitialised, or an invalid argument")
        return handle

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:
        for gpu in reversed(self._p.gpus):
            if uuid == f"GPU-{gpu.uuid}":
                return self._known(gpu)
        raise self.NVMLError("not found")

    def nvmlDeviceGetMigMode(self, handle: Any) -> Any:
        self._known(handle)
        return [int(self.mig), int(self.mig)]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "590.12"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        if not self.has_energy or self.mig:
            raise self.NVMLError("not supported")
        return round(1e3 * POWER_W * self._known(handle).busy_s)

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: str) -> int:
        self._known(handle)
        return {"sm": 1755, "mem": 2619}[kind]

    nvmlDeviceGetMaxClockInfo = nvmlDeviceGetClockInfo

    def nvmlDeviceGetTemperature(self, handle: Any, kind: str) -> int:
        self._known(handle)
        return 61

    def nvmlDeviceGetPowerManagementLimit(self, handle: Any) -> int:
        self._known(handle)
        return 700_000


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """PyTorch's C++ asks the guard of a kind of device which is current: the CPU's does nothing, and will do."""
    (library,) = (Path(torch.__file__).parent / "lib").glob("libc10.*")
    try:
        guards = (ctypes.c_void_p * 2).in_dll(
            ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE"
        )
    except ValueError:
        pytest.skip("this PyTorch cannot be made to believe in a GPU")
    if guards[1] is not None:
        pytest.skip("this PyTorch is one for GPUs")
    guards[1] = guards[0]
    try:
        yield
    finally:
        guards[1] = None


@contextlib.contextmanager
def pretended_cuda(gpus: int = 1, total_memory: int = 1 << 33) -> Iterator[Pretence]:
    """Within, PyTorch has GPUs.

    Args:
        gpus: How many.
        total_memory: Of each, in bytes.
    """
    made = Pretence([Gpu(f"{i:08x}-0000-0000-0000-00000000000{i}", total_memory) for i in range(gpus)])
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    with _guarded(), pytest.MonkeyPatch.context() as patch:
        for name, value in _cuda(made).items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(torch, "Generator", AnyGenerator("Generator", (), {}))
        patch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        patch.setitem(sys.modules, "pynvml", PretendedNvml(made))
        torch.__future__.set_swap_module_params_on_conversion(True)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda"): made here, then moved
        try:
            with Operators(made), Functions(made):
                yield made
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            torch.__future__.set_swap_module_params_on_conversion(swaps)
