"""The device at hand: its name, clocks, energy and memory, for the manifest."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from argus_sim.errors import InputError
from calibration.failures import first_line
from calibration.pipelines import need_torch

_LIBRARIES: Final = (
    "torch", "diffusers", "transformers", "torchmetrics", "safetensors", "accelerate", "DeepCache", "tomesd",
    "numpy", "argus-sim",
)  # fmt: skip


def resolve_device(device: str | None, gpu: int | None) -> str:
    """The device to use: ``cuda:N`` for ``--gpu N``, or what ``--device`` says.

    Raises:
        InputError: There is no such device.
    """
    if device is not None and gpu is not None:
        raise InputError("--device and --gpu are two ways to say the same thing: give one")
    if device in ("cpu", "meta"):
        return device
    if device is not None and not (device == "cuda" or device.startswith("cuda:")):
        raise InputError(f"no device {device!r}. Allowed: cpu, cuda, cuda:N, meta.", where="--device")
    where = "--gpu" if gpu is not None else "--device"
    number = str(gpu) if gpu is not None else (device or "cuda").partition(":")[2] or "0"
    if not number.isdecimal():
        raise InputError(f"no device {device or gpu!r}. Allowed: cpu, cuda, cuda:N, meta.", where=where)
    torch = need_torch()
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number) >= there:
        known = f"there are {there} GPUs, numbered from 0" if there else "PyTorch sees no GPU here"
        raise InputError(f"no GPU {number}: {known}; --device cpu works anywhere", where=where)
    try:
        torch.cuda.set_device(int(number))
        # One that is busy, or too old for this PyTorch, says so now.
        torch.ones(1, device=f"cuda:{number}").item()
    except RuntimeError as error:
        raise InputError(f"GPU {number} cannot be used: {first_line(error)}", where=where) from None
    return f"cuda:{number}"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a manifest says about the machine.

    Attributes:
        name: Of the GPU, or of the processor with the number of threads used.
        driver: Version of the GPU's driver, None without one.
        libraries: Package to version.
        facts: The rest: highest clock, power limit, memory, number of threads, git revision.
    """

    name: str
    driver: str | None
    libraries: dict[str, str]
    facts: dict[str, Any]


def describe(device: str) -> Hardware:
    torch = need_torch()
    libraries = {"python": platform.python_version()}
    for package in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            libraries[package] = importlib.metadata.version(package)
    facts: dict[str, Any] = {"git_revision": git_revision()}
    if not device.startswith("cuda"):
        threads = torch.get_num_threads()
        facts |= {"threads": threads, "cpus": os.cpu_count(), "system": platform.system()}
        return Hardware(f"CPU: {_processor()}, {threads} threads", None, libraries, facts)
    index = int(device.partition(":")[2] or 0)
    properties = torch.cuda.get_device_properties(index)
    libraries["cuda"] = str(torch.version.cuda)
    facts["memory_bytes"] = properties.total_memory
    with Nvml(device) as nvml:
        facts |= nvml.limits()
        return Hardware(properties.name, nvml.driver(), libraries, facts)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def git_revision() -> str | None:
    """Revision of the harness's checkout, with ``+`` where files were changed; None outside one."""
    root = Path(__file__).parent.parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        run = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip() or None
    return None


class Nvml:
    """NVML where it is to be had; every question has the answer None otherwise."""

    def __init__(self, device: str) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        self._index = int(device.partition(":")[2] or 0) if device.startswith("cuda") else None

    def __enter__(self) -> Nvml:
        if self._index is not None:
            try:
                import pynvml
            except ImportError:
                return self
            # No driver, no permission, or a slice of a GPU, whose energy is not told apart from that of the
            # others: then there is nothing to report.
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._nvml = pynvml
                # CUDA and NVML number GPUs differently, and CUDA can be shown some of them only.
                uuid = need_torch().cuda.get_device_properties(self._index).uuid
                handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{str(uuid).removeprefix('GPU-')}")
                sliced = self._ask("nvmlDeviceGetMigMode", handle)  # now, and after the next reset
                self._handle = None if sliced and sliced[0] else handle
        return self

    def __exit__(self, *_: object) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    def _ask(self, question: str, *args: Any) -> Any:
        if self._nvml is None or None in args:
            return None
        try:
            return getattr(self._nvml, question)(*args)
        except self._nvml.NVMLError:
            return None

    def driver(self) -> str | None:
        answer = self._ask("nvmlSystemGetDriverVersion")
        return answer.decode() if isinstance(answer, bytes) else answer

    def energy_j(self) -> float | None:
        """Energy since the driver was loaded."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)
        return None if millijoules is None else millijoules / 1e3

    def limits(self) -> dict[str, Any]:
        """Highest clock in MHz and power limit in watts; nothing where nothing is known."""
        if self._handle is None:
            return {}
        limit = self._ask("nvmlDeviceGetPowerManagementLimit", self._handle)
        return {
            "max_sm_clock_mhz": self._ask("nvmlDeviceGetMaxClockInfo", self._handle, self._nvml.NVML_CLOCK_SM),
            "power_limit_w": None if limit is None else limit / 1e3,
        }

    def now(self) -> dict[str, Any]:
        """Clocks in MHz and temperature now: of a GPU at rest they say nothing, so ask while it works."""
        if self._handle is None:
            return {}
        ask, handle, nvml = self._ask, self._handle, self._nvml
        return {
            "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
        }
