"""A pretended CUDA for a PyTorch without one: tensors that say they are on a GPU and lie in the host's memory.

A tensor "on cuda:N" is of a class of its own, so everything that is done to it passes here. As on a GPU, it is an
error to compute with tensors of two devices, to draw numbers with another device's generator, to read one from
NumPy, to allocate more than there is, and to ask for the time between events that have not been reached. Results
are those of the CPU.

Time is pretended too, and the same on every machine. A call costs the host next to nothing, and the GPU works
through its calls one after the other. So a clock that is read without waiting for the GPU shows too little.
What it cannot show: kernels that are missing or differ from the CPU's, and two streams at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU: Final = torch.device("cpu")
#: What CUDA's errors are; so called from PyTorch 2.8 on.
CudaError: Final = getattr(torch, "AcceleratorError", RuntimeError)
#: What the host spends on a call, and what the GPU spends on its work.
LAUNCH_S: Final = 1e-6
WORK_S: Final = 1e-4
#: Of a copy from the host's memory, from pinned and from pageable.
PINNED_BYTES_PER_S: Final = 1e9
PAGEABLE_BYTES_PER_S: Final = 1e8


@dataclass
class Gpu:
    """One GPU.

    Attributes:
        uuid: As NVML knows it, without ``GPU-``.
        total_memory: In bytes.
        allocated, peak, reserved, peak_reserved: Bytes of tensors, and with what is kept for later use.
        free_s: When it will have done what it was given.
        busy_s: How long it has worked.
    """

    uuid: str
    total_memory: int
    name: str = "Pretended GPU 80GB"
    allocated: int = 0
    peak: int = 0
    reserved: int = 0
    peak_reserved: int = 0
    free_s: float = 0.0
    busy_s: float = 0.0

    def reset_peak(self) -> None:
        self.peak, self.peak_reserved = self.allocated, self.reserved


class _Memory:
    """Some of a GPU's memory, taken as long as a tensor holds it."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        if gpu.allocated + size > gpu.total_memory:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. GPU has a total capacity of"
                f" {gpu.total_memory} bytes of which {gpu.total_memory - gpu.allocated} are free."
            )
        self._gpu, self._size = gpu, size
        gpu.allocated += size
        gpu.reserved = max(gpu.reserved, gpu.allocated)
        gpu.peak, gpu.peak_reserved = max(gpu.peak, gpu.allocated), max(gpu.peak_reserved, gpu.reserved)

    def __del__(self) -> None:
        if hasattr(self, "_gpu"):
            self._gpu.allocated -= self._size


class CudaTensor(torch.Tensor):
    """A tensor that says it is on a GPU. `inner` has its numbers."""

    inner: torch.Tensor
    memory: _Memory
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor, index: int, memory: _Memory, requires_grad: bool = False) -> CudaTensor:
        made: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device("cuda", index), requires_grad=requires_grad,
        )  # fmt: skip
        made.inner, made.memory = inner, memory
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a pretended tensor outside of its pretence")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.inner!r} on {self.device}"


class CudaGenerator(torch.Generator):
    """A generator that says it is on a GPU."""

    pretended: torch.device

    def __new__(cls, device: Any = "cpu") -> Any:
        device = torch.device(device)
        if device.type != "cuda":
            return _GENERATOR(device)
        made = super().__new__(cls, "cpu")
        made.pretended = device
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.pretended


_GENERATOR: Final = torch.Generator


class AnyGenerator(type):
    """``isinstance`` and calls as of ``torch.Generator``."""

    def __instancecheck__(cls, thing: Any) -> bool:
        return isinstance(thing, _GENERATOR)

    def __call__(cls, device: Any = "cpu") -> Any:
        return CudaGenerator(device)


@dataclass
class Pretence:
    """The GPUs of a pretended machine, and what was done with them.

    Attributes:
        gpus: In CUDA's order.
        host_s: The pretended time.
        current: The device of ``torch.cuda.set_device``.
        slowness: What the GPUs' work takes longer by.
        pinnable: Bytes of host memory that may be pinned at once.
        bf16: Whether the GPUs compute in it.
        kinds: How often each operator ran.
    """

    gpus: list[Gpu]
    host_s: float = 0.0
    current: int = 0
    slowness: float = 1.0
    pinnable: int = 1 << 40
    bf16: bool = True
    kinds: dict[str, int] = field(default_factory=dict)
    _memory: Any = field(default_factory=weakref.WeakValueDictionary)

    # ---- tensors

    def put(self, inner: torch.Tensor, index: int, requires_grad: bool = False) -> CudaTensor:
        """These numbers on a GPU."""
        storage = inner.untyped_storage()
        memory = self._memory.get(storage._cdata)
        if memory is None:
            memory = self._memory[storage._cdata] = _Memory(self.gpus[index], storage.nbytes())
        with torch.inference_mode(False):  # a view of an ordinary tensor is one, there too
            return CudaTensor(inner, index, memory, requires_grad)

    def device(self, device: Any) -> Any:
        """A device as PyTorch would complete it."""
        if isinstance(device, torch.device) and device.type == "cuda" and device.index in (None, -1):
            return torch.device("cuda", self.current)
        return device

    # ---- time

    def perf_counter(self) -> float:
        return self.host_s

    def sleep(self, seconds: float) -> None:
        self.host_s += seconds

    def work(self, index: int, seconds: float = WORK_S) -> None:
        """Give a GPU something to do."""
        gpu, seconds = self.gpus[index], seconds * self.slowness
        self.host_s += LAUNCH_S
        gpu.free_s = max(gpu.free_s, self.host_s) + seconds
        gpu.busy_s += seconds

    def wait(self, index: int) -> None:
        """Until a GPU has done everything."""
        self.host_s = max(self.host_s, self.gpus[index].free_s)


class Operators(TorchDispatchMode):
    """Runs operators on the numbers of pretended tensors, as strictly as a GPU."""

    def __init__(self, pretence: Pretence) -> None:
        super().__init__()
        self._p = pretence

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        p, kwargs = self._p, dict(kwargs or {})
        name = str(func).removeprefix("aten.")
        pinned = bool(kwargs.pop("pin_memory", None))
        leaves = list(_leaves((args, kwargs)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        if name in ("to.other", "type_as.default"):
            devices = [args[1].device]
        if name in ("pin_memory.default", "_pin_memory.default"):
            return self._pinned(args[0].clone())
        there = [t for t in tensors if isinstance(t, CudaTensor)]
        if not there and not any(device.type == "cuda" for device in devices):
            out = func(*args, **kwargs)
            return self._pinned(out) if pinned else out
        target = p.device(devices[0]) if devices else there[0].device
        moves = name.partition(".")[0] in ("_to_copy", "to", "copy_", "type_as")
        if not moves and not _may_mix(func, name, tensors, target):
            parts = self._in_parts(func, args, kwargs)
            if parts is not NotImplemented:
                return parts
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices,"
                f" {' and '.join(sorted({str(t.device) for t in tensors}))}! (in {name})"
            )
        p.kinds[name] = p.kinds.get(name, 0) + 1
        out = self._run(func, name, args, kwargs, there, target, moves)
        return self._pinned(out) if pinned else out

    def _run(
        self, func: Any, name: str, args: Any, kwargs: Any, there: list[CudaTensor], target: Any, moves: bool
    ) -> Any:
        p = self._p
        known = {id(t.inner): t for t in there}
        inside = _each(_inside, (args, kwargs))
        out = func(*inside[0], **inside[1])
        index = target.index if target.type == "cuda" else there[0].device.index
        if moves and args and not isinstance(args[0], CudaTensor) and name != "copy_.default":
            size = args[0].numel() * args[0].element_size()
            rate = PINNED_BYTES_PER_S if getattr(args[0], "pinned", False) else PAGEABLE_BYTES_PER_S
            p.work(index, size / rate)
            if not (kwargs.get("non_blocking") and getattr(args[0], "pinned", False)):
                p.wait(index)
            if isinstance(out, torch.Tensor) and out.untyped_storage()._cdata == args[0].untyped_storage()._cdata:
                out = out.clone()  # the CPU had nothing to do
        else:
            p.work(index)
        if target.type != "cuda":
            p.wait(index)
            if isinstance(out, torch.Tensor) and id(out) in known:
                return out.clone()
            return out
        if moves and name == "copy_.default":
            if not isinstance(args[0], CudaTensor):
                p.wait(index)
            return args[0]
        if not any(isinstance(leaf, torch.Tensor) for leaf in _leaves(out)):
            p.wait(index)  # a number, for the host to see
            return out

        def outside(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return known[id(leaf)] if id(leaf) in known else p.put(leaf, index)

        return _each(outside, out)

    def _in_parts(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What consists of others is judged by them."""
        with self:
            return func.decompose(*args, **kwargs)

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.numel() * tensor.element_size()
        if size > self._p.pinnable:
            raise CudaError("CUDA error: out of memory")
        self._p.pinnable -= size
        marked: Any = tensor
        marked.pinned = True
        return tensor


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, list | tuple):
        for branch in tree:
            yield from _leaves(branch)
    elif isinstance(tree, dict):
        for branch in tree.values():
            yield from _leaves(branch)
    else:
        yield tree


def _each(change: Callable[[Any], Any], tree: Any) -> Any:
    """The same with every leaf changed; PyTorch's own function for this takes several times as long."""
    if isinstance(tree, list | tuple) and not isinstance(tree, torch.Size):
        branches = [_each(change, branch) for branch in tree]
        return branches if isinstance(tree, list) else tuple(branches)
    if isinstance(tree, dict):
        return {name: _each(change, branch) for name, branch in tree.items()}
    return change(tree)


def _inside(leaf: Any) -> Any:
    if isinstance(leaf, CudaTensor):
        return leaf.inner
    return CPU if isinstance(leaf, torch.device) and leaf.type == "cuda" else leaf


def _may_mix(func: Any, name: str, tensors: list[torch.Tensor], target: torch.device) -> bool:
    """Whether a GPU takes operands that lie where these do."""
    others = [t for t in tensors if t.device != target]
    if not others or name.partition(".")[0].endswith("_like") or name.startswith("new_"):
        return True
    if name.startswith(("index.", "index_put", "_index_put")):
        return tensors[0].device == target and all(t.device == CPU for t in others)
    # A number in the host's memory goes with a call.
    takes_numbers = torch.Tag.pointwise in func.tags or name.startswith(("fill", "masked_fill"))
    return takes_numbers and all(t.device == CPU and t.dim() == 0 for t in others)


class Functions(TorchFunctionMode):
    """What operators do not see: Python's access to tensors."""

    def __init__(self, pretence: Pretence) -> None:
        super().__init__()
        self._p = pretence

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        p, kwargs = self._p, kwargs or {}
        first = args[0] if args else None
        of_data = getattr(func, "__self__", None) is torch.Tensor.data
        if of_data and func.__name__ == "__set__" and any(isinstance(t, CudaTensor) for t in args):
            return self._set_data(first, args[1])
        if isinstance(first, CudaTensor):
            if of_data:
                return p.put(first.inner, first.device.index)
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError(
                    f"can't convert {first.device} device type tensor to numpy. Use Tensor.cpu() to copy the"
                    " tensor to host memory first."
                )
            if func is torch.Tensor.tolist:
                p.wait(first.device.index)
                return first.inner.tolist()
            if func in (torch.Tensor.untyped_storage, torch.Tensor.data_ptr):
                return func(first.inner)
        args = tuple(p.device(_as_device(value)) for value in args)
        kwargs = {name: p.device(_as_device(value)) for name, value in kwargs.items()}
        generator = kwargs.get("generator")
        if isinstance(generator, _GENERATOR):
            target = first.device if isinstance(first, torch.Tensor) else kwargs.get("device") or CPU
            target = torch.device(target)
            if generator.device.type != target.type:
                raise RuntimeError(
                    f"Expected a '{target.type}' device type for generator but found '{generator.device.type}'"
                )
        return func(*args, **kwargs)

    def _set_data(self, tensor: Any, value: Any) -> None:
        """The same tensor, elsewhere: what refers to it refers to it still."""
        if isinstance(value, CudaTensor):
            new: Any = self._p.put(value.inner, value.device.index, tensor.requires_grad)
        else:
            new = value.detach().requires_grad_(tensor.requires_grad)
        if isinstance(tensor, torch.nn.Parameter):
            new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
        torch.utils.swap_tensors(tensor, new)


def _as_device(value: Any) -> Any:
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return torch.device(value)
    return value
