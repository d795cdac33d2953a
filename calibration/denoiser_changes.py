"""What approximations do to a pipeline's denoiser: context managers that change it and undo it exactly.

Names, ranks and how they compose are in :mod:`calibration.approximations`. Each change has an obstacle beside it:
why it cannot be made to a model on a device, or None.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from calibration.pipelines import denoiser, need_torch
from calibration.zoo import ZooModel

# ---- what is computed less often


@contextlib.contextmanager
def deep_cached(pipe: Any, interval: int) -> Iterator[None]:
    """Deep features of the U-Net are computed at every `interval`-th step only (package deepcache)."""
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


def no_deep_cache(entry: ZooModel, device: str) -> str | None:
    config = entry.denoiser_config()
    if "down_block_types" not in config:
        return "works on U-Nets only"
    if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") is None:
        return "its U-Net has no middle block, which DeepCache needs"
    return _missing("DeepCache", "deepcache")


@contextlib.contextmanager
def tokens_merged(pipe: Any, percent: int) -> Iterator[None]:
    """A share of the tokens is merged in the attention blocks of the highest resolution that has any (tomesd)."""
    import tomesd

    torch = need_torch()
    levels = [bool(getattr(block, "attentions", None)) for block in pipe.unet.down_blocks]
    # SDXL has no attention at full resolution: tomesd's default would merge nothing there.
    tomesd.apply_patch(pipe, ratio=percent / 100.0, max_downsample=2 ** levels.index(True))
    merging = pipe.unet._tome_info["args"]

    def seed(module: Any, inputs: Any) -> None:
        merging["generator"] = torch.Generator(module.device).manual_seed(0)

    # Which tokens are merged is drawn. A prompt is encoded at the start of every call: seeded there, an image
    # does not depend on what was run before it.
    hook = pipe.text_encoder.register_forward_pre_hook(seed)
    try:
        yield
    finally:
        hook.remove()
        tomesd.remove_patch(pipe)


def no_merging(entry: ZooModel, device: str) -> str | None:
    blocks = entry.denoiser_config().get("down_block_types")
    if blocks is None:
        return "works on U-Nets only"
    if not any("CrossAttn" in block for block in blocks):
        return "its U-Net has no attention to a text whose tokens could be merged"
    return _missing("tomesd", "tomesd")


# ---- other weights


@contextlib.contextmanager
def substituted(pipe: Any, change: Callable[[Any], None]) -> Iterator[None]:
    """A changed copy in the denoiser's place; the original waits in host memory, untouched.

    The copy is made and changed in host memory: the device holds one of the two at a time.
    """
    original = denoiser(pipe)
    slot = "unet" if getattr(pipe, "unet", None) is original else "transformer"
    device = original.device
    try:
        original.to("cpu")
        changed = copy.deepcopy(original)
        change(changed)
        setattr(pipe, slot, changed.to(device))
        del changed
        yield
    finally:
        setattr(pipe, slot, original)
        gc.collect()  # hooks refer to their module: the copy goes before the original comes
        original.to(device)


def to_int8(network: Any) -> None:
    """Linear weights as 8-bit integers with a scale per output channel, expanded when used."""
    torch = need_torch()

    class Int8Linear(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, full: Any) -> None:
            super().__init__()
            scale = (full.weight.abs().amax(dim=1, keepdim=True).float() / 127.0).clamp_min(1e-12)
            whole = (full.weight / scale).round().clamp(-127, 127).to(torch.int8)
            self.register_buffer("whole", whole)
            self.register_buffer("scale", scale.to(full.weight.dtype))
            self.bias = full.bias

        @property
        def weight(self) -> Any:  # others look at it for its dtype
            return self.whole.to(self.scale.dtype) * self.scale

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.linear(x, self.weight, self.bias)

    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                setattr(module, name, Int8Linear(child))


def to_fp8(network: Any) -> None:
    """Weights stored as 8-bit floats and cast layer by layer (diffusers' layerwise casting)."""
    torch = need_torch()
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=network.dtype)


# ---- the same work, compiled


@contextlib.contextmanager
def compiled(pipe: Any) -> Iterator[None]:
    """``torch.compile`` of the denoiser, one graph for each shape.

    PyTorch keeps compiled graphs by class and, past a limit, goes on uncompiled in silence: what earlier models
    left is forgotten before and after, and reaching the limit is an error.
    """
    torch = need_torch()
    network = denoiser(pipe)
    torch.compiler.reset()
    network.compile(dynamic=False)
    try:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield
    finally:
        network._compiled_call_impl = None
        torch.compiler.reset()


def no_compiler(entry: ZooModel, device: str) -> str | None:
    if device == "cpu":
        there = any(map(shutil.which, ("g++", "c++", "clang++")))
        return None if there else "torch.compile needs a C++ compiler"
    if importlib.util.find_spec("triton") is None:
        return "torch.compile needs the package 'triton' on a GPU"
    there = any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang")))
    return None if there else "torch.compile needs a C compiler: triton builds its launcher with it"


def _missing(module: str, package: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return f"the package {package!r} is not installed"
    return None
