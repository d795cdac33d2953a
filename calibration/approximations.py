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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final

from argus_sim.errors import InputError
from calibration import denoiser_changes as changes
from calibration.zoo import ZooModel


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
        obstacle: (model, device) -> why it cannot be used, or None.
    """

    name: str
    strategy: str
    rank: float
    adjust: Callable[[Run], Run]
    applied: Callable[[Any], AbstractContextManager[None]]
    obstacle: Callable[[ZooModel, str], str | None]


def _same(run: Run) -> Run:
    return run


def _none(entry: ZooModel, device: str) -> str | None:
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

    def obstacle(entry: ZooModel, device: str) -> str | None:
        if entry.can_skip_steps:
            return None
        return "its scheduler cannot start in the middle, or its few steps leave none to skip"

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
    """DeepCache: deep features of the U-Net are computed at every `interval`-th step only."""

    def adjust(run: Run) -> Run:
        steps = run.steps - run.skipped
        if steps < interval:
            raise InputError(f"{steps} steps are fewer than the interval {interval}", where="--approximations")
        return run

    def applied(pipe: Any) -> AbstractContextManager[None]:
        return changes.deep_cached(pipe, interval)

    return Approximation(f"deepcache-{interval}", "DEEPCACHE", interval, adjust, applied, changes.no_deep_cache)


def merge_tokens(percent: int) -> Approximation:
    """ToMe: a share of the tokens is merged in the attention blocks of highest resolution."""

    def applied(pipe: Any) -> AbstractContextManager[None]:
        return changes.tokens_merged(pipe, percent)

    return Approximation(f"tome-{percent}", "TOME", percent, _same, applied, changes.no_merging)


def int8_weights() -> Approximation:
    """The denoiser's linear weights as 8-bit integers.

    Saves memory; whether it saves time depends on the device. (diffusers has no such thing of its own.)
    """

    def applied(pipe: Any) -> AbstractContextManager[None]:
        return changes.substituted(pipe, changes.to_int8)

    return Approximation("int8", "INT8", 8, _same, applied, _none)


def fp8_weights() -> Approximation:
    """The denoiser's weights stored as 8-bit floats."""

    def applied(pipe: Any) -> AbstractContextManager[None]:
        return changes.substituted(pipe, changes.to_fp8)

    return Approximation("fp8", "FP8", 8, _same, applied, _none)


def compiled() -> Approximation:
    """``torch.compile`` of the denoiser; nothing is approximated, the work is the same."""
    return Approximation("compile", "COMPILE", 1, _same, changes.compiled, changes.no_compiler)


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
        # Fewer steps first: what is skipped is counted in the schedule that remains, and others see what is left.
        order = {"STEPS": 0, "AC": 1}
        for part in sorted(parts, key=lambda p: order.get(p.strategy, 2)):
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

    def obstacle(entry: ZooModel, device: str) -> str | None:
        return next((why for part in parts if (why := part.obstacle(entry, device))), None)

    strategy = "+".join(part.strategy for part in parts)
    return Approximation(name, strategy, sum(part.rank for part in parts), adjust, applied, obstacle)
