"""What is on the device: one model with one approximation applied, and the scorers while images are rated."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from calibration import loads, scorers
from calibration.approximations import parse
from calibration.latency import Workload
from calibration.pipelines import default_side, load, precision
from calibration.plan import Plan, Settings
from calibration.weights import Weights, fetch
from calibration.zoo import ZooModel


@dataclass
class _Session:
    entry: ZooModel
    work: Workload
    stack: contextlib.ExitStack
    variant: str = ""


class OnDevice:
    """The device, and what a calibration has on it.

    Args:
        settings, plan: What is to be done.
        entries: The models, by name.
        weights: Where each one's weights are.
        prompt: What the timed runs paint.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        entries: Mapping[str, ZooModel],
        weights: Mapping[str, Weights],
        prompt: str,
    ) -> None:
        self._settings, self._plan, self._entries, self._prompt = settings, plan, entries, prompt
        self._weights = dict(weights)
        self._session: _Session | None = None
        self._judges: list[scorers.Scorer] | None = None
        self.lost = False  #: whether it no longer answers: then this process has seen the last of it

    def fetched(self, model: str) -> Weights:
        """Where the model's weights are, on this machine. Raises InputError where they cannot be brought here."""
        entry, settings = self._entries[model], self._settings
        dtype = precision(entry, settings.dtype, settings.device)
        self._weights[model] = fetch(entry, self._weights[model], dtype=dtype)
        return self._weights[model]

    def open(self, model: str, variant: str = "") -> Workload:
        """The model on the device with the variant's approximation applied, whatever was there before."""
        if self._session is not None and self._session.entry.name != model:
            self.close()
        if self._session is None:
            entry, settings = self._entries[model], self._settings
            pipe = load(entry, self.fetched(model), device=settings.device, dtype=settings.dtype)
            side = default_side(entry, pipe)
            work = Workload(
                pipe, device=settings.device, steps=entry.steps, guidance=entry.guidance, side=side,
                options=entry.options,
            )  # fmt: skip
            work.prompt = self._prompt
            self._session = _Session(entry, work, contextlib.ExitStack())
        wanted = variant or model
        if self._session.variant != wanted:
            self._session.stack.close()
            approximation = parse(self._plan.variant(wanted).approximation)
            self._session.stack.enter_context(approximation.applied(self._session.work.pipe))
            self._session.variant = wanted
        return self._session.work

    def judges(self) -> list[scorers.Scorer]:
        """The scorers, which stay until they are dismissed."""
        if self._judges is None:
            self._judges = [scorers.build(name, device=self._settings.device) for name in self._settings.scorers]
        return self._judges

    def dismiss_judges(self) -> None:
        """Take the scorers off the device: what is timed next has its memory to itself."""
        if self._judges is not None:
            self._judges = None
            loads.release(self._settings.device)

    def close(self) -> None:
        """Take everything off the device."""
        session, self._session, self._judges = self._session, None, None
        if session is not None:
            with contextlib.suppress(Exception):  # of an approximation that broke; the model goes anyway
                session.stack.close()
        del session
        if not self.lost:
            try:
                loads.release(self._settings.device)
            except Exception:
                self.lost = True
