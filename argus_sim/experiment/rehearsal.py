"""All that a run does before it simulates, done once before anything is written: whether it can be run at all."""

from __future__ import annotations

import numpy as np

from argus_sim.errors import InputError
from argus_sim.experiment import cache_setup
from argus_sim.experiment.config import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.simulation.filling import FillingCacheConfig
from argus_sim.trace import Trace


def rehearse(scene: Scene) -> None:
    """Do all that a run does before it simulates, so that a bad input is found before anything is written.

    Raises:
        InputError: Something is wrong with the experiment or one of its inputs.
    """
    experiment, profile = scene.experiment, scene.profile
    missing = np.argwhere(np.isnan(profile.quality()))
    if len(missing):
        prompt, variant = missing[0]
        raise InputError(
            f"profile {profile.name!r} has no quality of prompt {profile.prompts[prompt]!r} at "
            f"{profile.variants[variant].name!r} (and {len(missing) - 1} more)"
        )
    splits = {split: profile.split.count(split) for split in ("train", "test")}
    if splits["train"] < 2 or splits["test"] < 1:
        raise InputError(
            f"profile {profile.name!r} needs at least two training prompts and one test prompt, found {splits}"
        )
    traces = [scene.trace(config, experiment.seed) for config in experiment.traces]
    _rehearse_trouble(experiment, max(trace.duration_s for trace in traces))
    for trace in traces:
        _rehearse_requests(scene, trace)
    for policy in experiment.policies:
        scene.policy(policy, experiment.seed)


def _rehearse_trouble(experiment: Experiment, end_s: float) -> None:
    """:class:`InputError` where something is to go wrong after the end of the longest trace."""
    for key, troubles in (
        ("faults", experiment.cluster.faults),
        ("cache.trouble", experiment.cluster.cache.trouble),
    ):
        for index, trouble in enumerate(troubles):
            at_s = getattr(trouble, "at_s", 0.0)  # of random crashes nobody says when
            if at_s >= end_s:
                raise InputError(
                    f"is {at_s:g} s, and every trace has ended by {end_s:g} s: it would change nothing",
                    where=f"experiment {experiment.name!r}: cluster.{key}.{index}.at_s",
                )


def _rehearse_requests(scene: Scene, trace: Trace) -> None:
    """:class:`InputError` where a run's prompts or its cache could not be made."""
    experiment, seed = scene.experiment, scene.experiment.seed
    if experiment.prompts is not None:
        scene.workload(trace, seed)
    if isinstance(experiment.cluster.cache, FillingCacheConfig):
        cache_setup.filling_cache(scene, experiment.cluster.cache, trace, scene.workload(trace, seed), seed)
