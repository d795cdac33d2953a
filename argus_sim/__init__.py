"""argus-sim: find out, before buying a single GPU, how a text-to-image service will behave."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argus_sim.errors import InputError
    from argus_sim.experiment import Experiment
    from argus_sim.experiment.results import Results
    from argus_sim.profile import Profile
    from argus_sim.trace import Trace

__version__ = version("argus-sim")

__all__ = ["Experiment", "InputError", "Profile", "Results", "Trace", "__version__"]

#: Loaded when they are asked for: ``argus-sim --help`` is to answer at once.
_HOMES = {
    "Experiment": "experiment",
    "InputError": "errors",
    "Profile": "profile",
    "Results": "experiment.results",
    "Trace": "trace",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'argus_sim' has no attribute {name!r}")
    return getattr(import_module(f"argus_sim.{_HOMES[name]}"), name)
