"""Policies rank on a fitted model as on the recorded trace that it was fitted to: here, of two traces in part.

The table of all five traces in full is on the page of validation, made from ``experiments/fitted.yaml``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from argus_sim.experiment import Experiment
from argus_sim.experiment.runner import run_experiment
from argus_sim.metrics.intervals import agreement

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"


def test_the_experiment_is_real_yaml_with_a_model_beside_each_trace() -> None:
    real, fitted = (yaml.safe_load((EXPERIMENTS / f"{n}.yaml").read_text("utf-8")) for n in ("real", "fitted"))
    for key in ("seed", "replications", "profile", "policies", "cluster"):
        assert fitted[key] == real[key], key
    assert fitted["traces"][::2] == real["traces"]
    for trace, model in zip(real["traces"], fitted["traces"][1::2], strict=True):
        name = f"{trace['name']}-fit"
        assert model == {"name": name, "file": name, "peak": trace["peak"]}


@pytest.mark.data
def test_no_pair_of_policies_is_swapped(data: Path, tmp_path: Path) -> None:
    """An hour of conversations, and the four busiest hours of the day at the gateway."""
    experiment = Experiment.load(EXPERIMENTS / "fitted.yaml")
    traces = {trace.name: trace for trace in experiment.traces}
    busy = {"clip_s": (21_600.0, 36_000.0)}
    chosen = [
        *(traces[name].model_copy(update=busy) for name in ("gateway-day", "gateway-day-fit")),
        *(traces[name] for name in ("azure-conv", "azure-conv-fit")),
    ]
    part = experiment.model_copy(update={"traces": tuple(chosen)})
    summary = run_experiment(part, tmp_path / "out", jobs=1, report=False).summary
    for name in ("gateway-day", "azure-conv"):
        got = agreement(summary, name, f"{name}-fit")
        assert not got.swapped, name
        assert got.tau > 0.7, name
        assert got.same > got.pairs / 2, name
