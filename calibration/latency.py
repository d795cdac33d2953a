"""How long it takes: until the answer is steady and its uncertainty small, or the budget is spent.

Times come from CUDA events on a GPU and from ``perf_counter`` elsewhere. The statistic is the median; its 95 %
interval comes from order statistics (no assumption about the distribution), and sampling goes on until half its
width is under 1 % of the median; where runs differ, until the 99th percentile can be among them. On a GPU, where
runs of many seconds repeat to 1 %, those get the time for that.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from argus_sim.profile import latency_row
from calibration.approximations import Approximation, Run
from calibration.pipelines import denoiser, modules, need_torch

#: Wanted half-width of the median's 95 % interval, as a share of the median.
PRECISION: Final = 0.01
_MIN_SAMPLES: Final = 8
_MAX_SAMPLES: Final = 500
#: Warm-up ends when the medians of two successive windows differ by less than this share.
_STEADY: Final = 0.02
_WINDOW: Final = 3
_MAX_WARM_UP: Final = 30
#: Runs that the wanted precision takes where nothing jitters: some to see that it is steady, and 8 samples.
_RUNS: Final = 12
#: Where runs differ by more than this (standard deviation over mean) they have a tail, and the 99th percentile of
#: a few of them would be too small: sampling then goes on until there are so many.
_CALM: Final = 0.01
TAIL_SAMPLES: Final = 100
#: The pause after which images are timed as well, seconds.
DEFAULT_IDLE_S: Final = 0.2
#: Longest time for a latency on a GPU, in times of what a cell gets.
_LONGEST: Final = 30.0


class Clock(Protocol):
    """Marks moments on a device and tells the time between them."""

    def mark(self) -> Any:
        """A moment in the device's stream of work."""

    def between_s(self, first: Any, last: Any) -> float:
        """Seconds between two marks, both of which have been reached by the time this returns."""


class HostClock:
    """``perf_counter``: for devices whose work is done when a call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def between_s(self, first: float, last: float) -> float:
        return last - first


class CudaClock:
    """CUDA events: the GPU's own clock, undisturbed by how far the host is ahead."""

    def __init__(self) -> None:
        self._cuda = need_torch().cuda

    def mark(self) -> Any:
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_s(self, first: Any, last: Any) -> float:
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3


def clock_for(device: str) -> Clock:
    return CudaClock() if device.startswith("cuda") else HostClock()


@dataclass(frozen=True, slots=True)
class Samples:
    """Repeated measurements of one thing.

    Attributes:
        seconds: In the order they were taken, warm-up left out.
        warm_up: Runs before.
        steady: Whether the warm-up ended because times no longer changed.
        half_width: Of the median's 95 % interval, as a share of the median; NaN with too few samples.
    """

    seconds: tuple[float, ...]
    warm_up: int
    steady: bool
    half_width: float

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))

    @property
    def drift(self) -> float:
        """Median of the last third over that of the first, minus 1: heat, or a changing clock."""
        third = max(len(self.seconds) // 3, 1)
        return float(np.median(self.seconds[-third:]) / np.median(self.seconds[:third]) - 1.0)

    def row(self) -> dict[str, float]:
        """The columns of the latency table."""
        return latency_row(self.seconds)


def median_half_width(seconds: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the median over the median, from order statistics; NaN below 6.

    >>> median_half_width([1.0] * 10)
    0.0
    >>> median_half_width([1.0, 2.0])
    nan
    """
    n = len(seconds)
    if n < 6:
        return math.nan
    # The number of samples below the median is binomial(n, 1/2): take its central 95 %.
    reach = 1.959964 * math.sqrt(n) / 2.0
    low = max(math.floor(n / 2.0 - reach), 0)
    high = min(math.ceil(n / 2.0 + reach), n - 1)
    ordered = sorted(seconds)
    middle = float(np.median(ordered))
    return (ordered[high] - ordered[low]) / 2.0 / middle if middle > 0 else math.nan


def longest_s(device: str, cell_seconds: float) -> float:
    """What a latency of long runs may take; on a CPU, whose jitter is above 1 %, no more than any other."""
    return _LONGEST * cell_seconds if device.startswith("cuda") else cell_seconds


def allowed_s(run_s: float, budget_s: float, longest: float) -> float:
    """Time for the latency of something that takes `run_s`.

    >>> allowed_s(0.5, 15.0, 450.0), allowed_s(5.0, 15.0, 450.0), allowed_s(60.0, 15.0, 450.0)
    (15.0, 60.0, 450.0)
    """
    return max(budget_s, min(_RUNS * run_s, longest))


def measure(
    once: Callable[[], float],
    *,
    budget_s: float,
    longest: float = 0.0,
    tail: int = TAIL_SAMPLES,
    sampling: Callable[[], None] = lambda: None,
    now: Callable[[], float] = time.monotonic,
) -> Samples:
    """Call `once`, which returns a time in seconds, until its median is known well enough or the time is spent.

    Warm-up runs are not counted; they end when times are steady, or with a third of the time. At least three
    samples are taken whatever the budget.

    Args:
        once: Does the work.
        budget_s: Time for it. What the first run takes beyond two of the ones after it is not taken off: it
            compiles.
        longest: The most that it may take where runs are too long for the precision within the budget.
        tail: Where runs differ, the samples to take for their 99th percentile.
        sampling: Called between warm-up and samples.
        now: A clock.
    """
    warm: list[float] = [once()]
    start, later = now(), 0.0  # later: the longest run after the first

    def spent_s() -> float:
        return now() - start + (min(warm[0], 2.0 * later) if later else warm[0])

    steady = False
    while len(warm) < _MAX_WARM_UP and spent_s() < (third := allowed_s(warm[-1], budget_s, longest) / 3.0):
        warm.append(once())
        later = max(later, warm[-1])
        # Where two windows would take more than the warm-up may, single runs are compared: long ones jitter less.
        window = _WINDOW if 2 * _WINDOW * warm[-1] <= third else 1
        if len(warm) >= 2 * window:
            before, after = np.median(warm[-2 * window : -window]), np.median(warm[-window:])
            steady = bool(abs(after / before - 1.0) < _STEADY)
            if steady:
                break
    sampling()
    seconds: list[float] = []
    while len(seconds) < _MAX_SAMPLES:
        seconds.append(once())
        later = max(later, seconds[-1])
        if len(seconds) >= _MIN_SAMPLES and median_half_width(seconds) < PRECISION and _has_tail(seconds, tail):
            break
        allowed = allowed_s(float(np.median(seconds)), budget_s, longest)
        if len(seconds) >= 3 and spent_s() >= allowed:
            break
    return Samples(tuple(seconds), len(warm), steady, median_half_width(seconds))


def _has_tail(seconds: Sequence[float], samples: int) -> bool:
    """Whether the 99th percentile is among them, as far as there is one apart from the median."""
    return len(seconds) >= samples or float(np.std(seconds)) < _CALM * float(np.mean(seconds))


def after_idle(once: Callable[[], float], idle_s: float) -> Callable[[], float]:
    """The same after a pause: `once` comes when the device has had nothing to do for so long."""

    def rested() -> float:
        time.sleep(idle_s)
        return once()

    return rested


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the time of one run goes, in seconds: medians over repeated runs.

    `total_s` is `text_s` + steps x `step_s` + `vae_s` + `other_s`; a step includes the scheduler's part of it.
    """

    total_s: float
    text_s: float
    step_s: float
    vae_s: float
    other_s: float
    denoiser_s: float

    def predicted_s(self, steps: int) -> float:
        """Time of a run of another number of steps: what approximate caching should take."""
        return self.text_s + self.vae_s + self.other_s + steps * self.step_s


class Workload:
    """A pipeline set up to run one batch again and again."""

    def __init__(
        self,
        pipe: Any,
        *,
        device: str,
        steps: int,
        guidance: float,
        side: int,
        prompt: str = "a photo of a fox",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipe, self.device, self.prompt = pipe, device, prompt
        self.steps, self.guidance, self.side = steps, guidance, side
        self.options = dict(options or {})  # further ones of every call
        self.clock = clock_for(device)

    def call(self, run: Run, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Any:
        """Run the pipeline; float images in [0, 1], (N, H, W, 3), or what `options` ask for."""
        torch = need_torch()
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        values = {
            "num_inference_steps": run.steps,
            "guidance_scale": self.guidance,
            "height": self.side,
            "width": self.side,
            "generator": generators,
            "output_type": "np",
        }
        vae = self.pipe.vae
        (vae.enable_slicing if self.decodes_in_turn(len(prompts)) else vae.disable_slicing)()
        with torch.inference_mode():
            return self.pipe(prompt=list(prompts), **values | self.options | self._heard(options)).images

    def _heard(self, options: dict[str, Any]) -> dict[str, Any]:
        """The same with the callback that the pipeline knows: PixArt's takes the newer one and never calls it."""
        at_step_end = options.get("callback_on_step_end")
        known = inspect.signature(type(self.pipe).__call__).parameters
        if at_step_end is None or "callback_on_step_end" in known or "callback" not in known:
            return options

        def callback(step: int, timestep: Any, latents: Any) -> None:
            at_step_end(self.pipe, step, timestep, {"latents": latents})

        return {k: v for k, v in options.items() if k != "callback_on_step_end"} | {"callback": callback}

    def decodes_in_turn(self, batch: int) -> bool:
        """Whether the images of a batch are decoded one after the other: kernels count elements in 31 bits.

        The largest tensor of the decoder has the second of its widths at full resolution.
        """
        widths: Sequence[int] = getattr(self.pipe.vae.config, "block_out_channels", ())
        return batch > 1 and len(widths) > 1 and batch * widths[1] * self.side**2 >= 2**31

    def latents(self, batch: int, skipped: int) -> Any:
        """Some start latents of the right shape: what approximate caching loads, for timing."""
        torch = need_torch()
        recorder = _FirstLatents()
        prompts, seeds = [self.prompt] * batch, list(range(batch))
        self.call(Run(skipped + 2), prompts, seeds, callback_on_step_end=recorder)
        return torch.randn_like(recorder.latents)

    def timed(self, approximation: Approximation, batch: int) -> Callable[[], float]:
        """A function that runs the batch once and returns its seconds; both are called within ``applied``."""
        run = approximation.adjust(Run(self.steps))
        options = {"latents": self.latents(batch, run.skipped)} if run.skipped else {}
        prompts, seeds = [self.prompt] * batch, list(range(batch))

        def once() -> float:
            first = self.clock.mark()
            # A copy to the host ends a run, as it does in a server.
            self.call(run, prompts, seeds, **options)
            return self.clock.between_s(first, self.clock.mark())

        return once

    def parts(self, batch: int, *, repeats: int = 3) -> Parts:
        """Time of the text encoders, a denoising step, the image decoder and the rest."""
        rows = []
        for _ in range(repeats):
            steps: list[Any] = []

            def stamp(
                pipe: Any, i: int, t: Any, values: dict[str, Any], into: list[Any] = steps
            ) -> dict[str, Any]:
                into.append(self.clock.mark())
                return values

            with _timed_modules(self.pipe, self.clock) as spans:
                first = self.clock.mark()
                self.call(Run(self.steps), [self.prompt] * batch, list(range(batch)), callback_on_step_end=stamp)
                last = self.clock.mark()
            total = self.clock.between_s(first, last)
            text = sum(self.clock.between_s(*span) for span in spans["text"])
            vae = sum(self.clock.between_s(*span) for span in spans["vae"])
            network = sum(self.clock.between_s(*span) for span in spans["denoiser"])
            step = self.clock.between_s(steps[0], steps[-1]) / (len(steps) - 1) if len(steps) > 1 else network
            rows.append((total, text, step, vae, total - text - vae - step * len(steps), network))
        return Parts(*(float(v) for v in np.median(np.array(rows), axis=0)))

    def skipping(
        self, approximations: Mapping[str, Approximation], *, rounds: int
    ) -> dict[str, list[tuple[float, float]]]:
        """Runs of approximate caching, each between two full ones: its predicted and its measured seconds.

        The prediction is the mean of what the parts of the run before and of the run after say, so that a machine
        that changes its pace meanwhile changes both sides.
        """
        out: dict[str, list[tuple[float, float]]] = {name: [] for name in approximations}
        timed: dict[str, Callable[[], float]] = {}
        for name, approximation in approximations.items():
            with approximation.applied(self.pipe):
                timed[name] = self.timed(approximation, 1)
                timed[name]()  # warm-up
        before = self.parts(1, repeats=1)
        for _ in range(rounds):
            for name, approximation in approximations.items():
                run = approximation.adjust(Run(self.steps))
                with approximation.applied(self.pipe):
                    measured_s = timed[name]()
                after = self.parts(1, repeats=1)
                steps = run.steps - run.skipped
                out[name].append(((before.predicted_s(steps) + after.predicted_s(steps)) / 2.0, measured_s))
                before = after
        return out


class _FirstLatents:
    latents: Any = None

    def __call__(self, pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if self.latents is None:
            self.latents = values["latents"]
        return values


@contextmanager
def _timed_modules(pipe: Any, clock: Clock) -> Iterator[dict[str, list[tuple[Any, Any]]]]:
    """Marks around every call of the text encoders, the denoiser and the image decoder."""
    spans: dict[str, list[tuple[Any, Any]]] = {"text": [], "denoiser": [], "vae": []}
    hooks = []

    def watch(module: Any, kind: str) -> None:
        opened: list[Any] = []
        hooks.append(module.register_forward_pre_hook(lambda *_: opened.append(clock.mark())))
        hooks.append(module.register_forward_hook(lambda *_: spans[kind].append((opened.pop(), clock.mark()))))

    for name, module in modules(pipe).items():
        if name.startswith("text_encoder"):
            watch(module, "text")
    watch(denoiser(pipe), "denoiser")
    watch(pipe.vae.decoder, "vae")
    try:
        yield spans
    finally:
        for hook in hooks:
            hook.remove()
