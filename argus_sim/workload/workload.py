"""From a trace to the requests of a run: when, which prompt, until when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from argus_sim.core.requests import Requests
from argus_sim.errors import InputError
from argus_sim.profile import Profile
from argus_sim.trace import Trace
from argus_sim.workload.prompts import PromptsConfig, RecordedTexts

#: Purposes that random numbers are drawn for. Each has a stream of its own, so that what one draws never
#: changes what another gets; the number of a purpose is part of what a seed means, so new ones go at the end.
STREAMS = (
    *("arrivals", "prompts", "service", "loads", "cache", "faults", "policy", "discriminator", "predictor"),
    *("similarity", "judged", "jitter", "scored"),
)


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The random numbers of one purpose in the run of a seed: the same for every policy."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(purpose),)))


@dataclass(frozen=True)
class Workload:
    """The requests of one run as columns, n long, ordered by arrival.

    Attributes:
        arrival_s: float64[n].
        deadline_s: float64[n], ``arrival_s + slo_s``.
        prompt: int32[n], index into the profile's prompts.
        slo_s: The deadline of each request after its arrival.
        duration_s: Length of the trace.
        texts: Distinct texts, where these are recorded ones; empty where a prompt's text is the profile's.
        text: int32[n], index into ``texts``; None where a prompt's text is the profile's.
    """

    arrival_s: npt.NDArray[np.float64]
    deadline_s: npt.NDArray[np.float64]
    prompt: npt.NDArray[np.int32]
    slo_s: float
    duration_s: float
    texts: tuple[str, ...] = ()
    text: npt.NDArray[np.int32] | None = None

    @classmethod
    def of(
        cls,
        trace: Trace,
        profile: Profile,
        slo_s: float,
        rng: np.random.Generator,
        prompts: PromptsConfig | None = None,
        recorded: RecordedTexts | None = None,
    ) -> Workload:
        """Draw a prompt for each arrival from those the predictors were not trained on, uniformly by default.

        Recorded texts are taken in their order instead, each with the prompt that stands in for it.

        Raises:
            InputError: The profile has no test prompts, one of them has no quality at some variant, or there are
                fewer recorded texts than arrivals.
        """
        if recorded is not None:
            text = recorded.take(len(trace)).astype(np.int32)
            prompt = recorded.prompt[text].astype(np.int32)
            deadline_s = trace.arrival_s + slo_s
            return cls(trace.arrival_s, deadline_s, prompt, slo_s, trace.duration_s, recorded.texts, text)
        test = np.flatnonzero(~profile.is_train)
        if not len(test):
            raise InputError(
                f"profile {profile.name!r} has no prompts with split 'test': there is nothing to ask for"
            )
        unknown = np.argwhere(np.isnan(profile.quality()[test]))
        if len(unknown):
            prompt, variant = unknown[0]
            raise InputError(
                f"profile {profile.name!r} has no quality of prompt {profile.prompts[test[prompt]]!r} at "
                f"{profile.variants[variant].name!r} ({len(unknown)} combinations are missing)"
            )
        if prompts is None:
            prompt_of = test[rng.integers(0, len(test), size=len(trace))].astype(np.int32)
        else:
            prompt_of = prompts.draw(trace, profile, test, rng).astype(np.int32)
        return cls(trace.arrival_s, trace.arrival_s + slo_s, prompt_of, slo_s, trace.duration_s)

    def requests(self) -> Requests:
        return Requests.of(self.arrival_s, self.deadline_s, self.prompt)
