"""Ways to spend less on an image: context objects that change a diffusers pipeline and undo it exactly.

An approximation has a name (``ac-20``, ``steps-25``, ``deepcache-3``, ``tome-50``, ``int8``, ``fp8``,
``compile``), a strategy (the ladder it belongs to) and two effects: on how a run is set up
(:meth:`Approximation.adjust`) and on the pipeline while it runs (:meth:`Approximation.applied`). They compose:
``deepcache-3+tome-50``.

>>> parse("ac-20").adjust(Run(steps=50)).skipped
20
>>> parse("steps-25+tome-50").name
'steps-25+tome-50'
>>> parse("ac20")
Traceback (most recent call last):
    ...
argus_sim.errors.InputError: --approximations: no approximation 'ac20'. Allowed: ac-K, compile, deepcache-N, ...
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final

from argus_sim.errors import InputError
from calibration.pipelines import denoiser, need_torch


@dataclass(frozen=True, slots=True)
class Run:
    """How a pipeline is called.

    Attributes:
        steps: Denoising steps of the full schedule.
        skipped: Steps at its start that a stored latent spares.
    """

    steps: int
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Approximation:
    """One way to approximate, or several at once.

    Attributes:
        name: As in the variant's name.
        strategy: The ladder.
        rank: How approximate it is within its strategy; more is more.
        adjust: Run -> Run.
        applied: Pipeline -> context within which the approximation holds.
        obstacle: (pipeline's zoo entry can skip steps, device) -> why it cannot be used, or None.
    """

    name: str
    strategy: str
    rank: float
    adjust: Callable[[Run], Run]
    applied: Callable[[Any], AbstractContextManager[None]]
    obstacle: Callable[[bool, str], str | None]


def _same(run: Run) -> Run:
    return run


def _none(can_skip: bool, device: str) -> str | None:
    return None


@contextlib.contextmanager
def _as_is(pipe: Any) -> Iterator[None]:
    yield


#: The base: nothing approximated.
EXACT: Final = Approximation("", "BASE", 0.0, _same, _as_is, _none)


# ---- approximate caching


def approximate_caching(skip: int) -> Approximation:
    """AC-K: start at step K from the stored latent of a similar prompt.

    The latent is handed to the pipeline as ``latents``; the pipeline's scheduler is replaced by one of a subclass
    whose timesteps begin at K and which leaves start latents unscaled. With the latent that the very same run had
    at step K the images are equal to the bit.
    """

    def adjust(run: Run) -> Run:
        if skip >= run.steps:
            raise InputError(f"cannot skip {skip} of {run.steps} steps", where="--approximations")
        return replace(run, skipped=skip)

    @contextlib.contextmanager
    def applied(pipe: Any) -> Iterator[None]:
        full = pipe.scheduler
        late = copy.copy(full)  # with whatever the pipeline has changed in it since it was made
        kind: Any = type(full)
        late.__class__ = _late_starter(kind, skip)
        pipe.scheduler = late
        try:
            yield
        finally:
            pipe.scheduler = full

    def obstacle(can_skip: bool, device: str) -> str | None:
        return (
            None if can_skip else "its scheduler cannot start in the middle, or its few steps leave none to skip"
        )

    return Approximation(f"ac-{skip}", "AC", skip, adjust, applied, obstacle)


@functools.cache
def _late_starter(scheduler: Any, skip: int) -> Any:
    """A subclass of a scheduler that starts at step `skip`."""

    class LateStarter(scheduler):  # type: ignore[misc]
        # What a pipeline may pass is found by looking at the signature, which `wraps` keeps.
        timesteps: Any

        @functools.wraps(scheduler.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self.timesteps = self.timesteps[skip:]
            self.set_begin_index(0)

        def set_begin_index(self, begin_index: int = 0) -> None:
            if hasattr(scheduler, "set_begin_index"):
                super().set_begin_index(begin_index + skip)

        @property
        def init_noise_sigma(self) -> float:
            return 1.0  # a stored latent has its scale already

        @init_noise_sigma.setter
        def init_noise_sigma(self, value: float) -> None:
            pass

    LateStarter.__name__ = scheduler.__name__
    return LateStarter


class LatentRecorder:
    """A ``callback_on_step_end`` that keeps the latents with which given steps begin.

    >>> LatentRecorder([10]).wanted
    frozenset({10})
    """

    def __init__(self, steps: list[int]) -> None:
        self.wanted = frozenset(steps)
        self.latents: dict[int, Any] = {}

    def __call__(self, pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step + 1 in self.wanted:  # the end of step i is the beginning of i + 1
            self.latents[step + 1] = values["latents"].detach().clone()
        return values


# ---- the others


def fewer_steps(steps: int) -> Approximation:
    """A schedule of fewer steps, from noise."""

    def adjust(run: Run) -> Run:
        if steps >= run.steps:
            raise InputError(f"{steps} steps are no fewer than {run.steps}", where="--approximations")
        return replace(run, steps=steps)

    return Approximation(f"steps-{steps}", "STEPS", -steps, adjust, _as_is, _none)


def deep_cache(interval: int) -> Approximation:
    """DeepCache: deep features of the U-Net are computed at every `interval`-th step only (package deepcache)."""

    @contextlib.contextmanager
    def applied(pipe: Any) -> Iterator[None]:
        from DeepCache import DeepCacheSDHelper

        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=0)
        helper.enable()
        try:
            yield
        finally:
            helper.disable()

    def obstacle(can_skip: bool, device: str) -> str | None:
        return _missing("DeepCache", "deepcache")

    return Approximation(f"deepcache-{interval}", "DEEPCACHE", interval, _same, applied, obstacle)


def merge_tokens(percent: int) -> Approximation:
    """ToMe: a share of the tokens is merged in the attention blocks of highest resolution (package tomesd)."""

    @contextlib.contextmanager
    def applied(pipe: Any) -> Iterator[None]:
        import tomesd

        tomesd.apply_patch(pipe, ratio=percent / 100.0)
        try:
            yield
        finally:
            tomesd.remove_patch(pipe)

    def obstacle(can_skip: bool, device: str) -> str | None:
        return _missing("tomesd", "tomesd")

    return Approximation(f"tome-{percent}", "TOME", percent, _same, applied, obstacle)


@contextlib.contextmanager
def _substituted(pipe: Any, change: Callable[[Any], None]) -> Iterator[None]:
    """A changed copy in the denoiser's place; the original waits in host memory, untouched."""
    original = denoiser(pipe)
    slot = "unet" if getattr(pipe, "unet", None) is original else "transformer"
    device = original.device
    changed = copy.deepcopy(original)
    change(changed)
    original.to("cpu")
    setattr(pipe, slot, changed)
    try:
        yield
    finally:
        setattr(pipe, slot, original)
        original.to(device)


def int8_weights() -> Approximation:
    """The denoiser's linear weights as 8-bit integers with a scale per output channel, expanded when used.

    Saves memory; whether it saves time depends on the device. (diffusers has no such thing of its own.)
    """

    def applied(pipe: Any) -> AbstractContextManager[None]:
        return _substituted(pipe, _to_int8)

    return Approximation("int8", "INT8", 8, _same, applied, _none)


def _to_int8(network: Any) -> None:
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


def fp8_weights() -> Approximation:
    """The denoiser's weights stored as 8-bit floats and cast layer by layer (diffusers' layerwise casting)."""

    def change(network: Any) -> None:
        torch = need_torch()
        network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=network.dtype)

    def applied(pipe: Any) -> AbstractContextManager[None]:
        return _substituted(pipe, change)

    return Approximation("fp8", "FP8", 8, _same, applied, _none)


def compiled() -> Approximation:
    """``torch.compile`` of the denoiser; nothing is approximated, the work is the same."""

    @contextlib.contextmanager
    def applied(pipe: Any) -> Iterator[None]:
        network = denoiser(pipe)
        network.compile()
        try:
            yield
        finally:
            network._compiled_call_impl = None

    def obstacle(can_skip: bool, device: str) -> str | None:
        if device == "cpu" and not any(map(shutil.which, ("g++", "c++", "clang++"))):
            return "torch.compile needs a C++ compiler"
        return None

    return Approximation("compile", "COMPILE", 1, _same, applied, obstacle)


def _missing(module: str, package: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return f"the package {package!r} is not installed"
    return None


# ---- names

_WITH_NUMBER: Final[dict[str, tuple[Callable[[int], Approximation], int, int]]] = {
    "ac": (approximate_caching, 1, 999),
    "steps": (fewer_steps, 1, 999),
    "deepcache": (deep_cache, 2, 99),
    "tome": (merge_tokens, 1, 75),
}
_PLAIN: Final[dict[str, Callable[[], Approximation]]] = {
    "int8": int8_weights,
    "fp8": fp8_weights,
    "compile": compiled,
}
_ALLOWED: Final = "ac-K, compile, deepcache-N, fp8, int8, steps-N, tome-PERCENT, and sums of them: tome-50+fp8"

#: What is calibrated unless something else is asked for.
DEFAULT: Final = ("ac-5", "ac-10", "ac-15", "ac-20", "ac-25", "steps-25", "steps-15", "deepcache-3", "tome-50")


def parse(name: str) -> Approximation:
    """An approximation by name; "" is none. Raises InputError for what is none."""
    if not name:
        return EXACT
    parts = [_parse_one(part) for part in name.split("+")]
    if len(parts) == 1:
        return parts[0]
    if len({part.strategy for part in parts}) < len(parts):
        raise InputError(f"{name!r} names a strategy twice", where="--approximations")
    return _compose(name, parts)


def _parse_one(name: str) -> Approximation:
    kind, _, number = name.partition("-")
    if name in _PLAIN:
        return _PLAIN[name]()
    if kind in _WITH_NUMBER and number.isdecimal():
        build, low, high = _WITH_NUMBER[kind]
        if not low <= int(number) <= high:
            raise InputError(f"{name!r}: the number must be in {low}..{high}", where="--approximations")
        return build(int(number))
    raise InputError(f"no approximation {name!r}. Allowed: {_ALLOWED}", where="--approximations")


def _compose(name: str, parts: list[Approximation]) -> Approximation:
    def adjust(run: Run) -> Run:
        # Fewer steps first: what is skipped is counted in the schedule that remains.
        for part in sorted(parts, key=lambda p: p.strategy != "STEPS"):
            run = part.adjust(run)
        return run

    @contextlib.contextmanager
    def applied(pipe: Any) -> Iterator[None]:
        # Weights are replaced before anything is hooked to the modules that hold them; what compiles comes last.
        order = {"INT8": 0, "FP8": 0, "COMPILE": 2}
        with contextlib.ExitStack() as stack:
            for part in sorted(parts, key=lambda p: order.get(p.strategy, 1)):
                stack.enter_context(part.applied(pipe))
            yield

    def obstacle(can_skip: bool, device: str) -> str | None:
        return next((why for part in parts if (why := part.obstacle(can_skip, device))), None)

    strategy = "+".join(part.strategy for part in parts)
    return Approximation(name, strategy, sum(part.rank for part in parts), adjust, applied, obstacle)
