"""An experiment: what YAML says, and all that is done to it, from one run to the results of many.

Imports run one way here as well, down this list (tests/test_purity.py); only :meth:`Experiment.run` looks up, and
only when it is called.

settings.py        YAML files, ``--set``, and errors that name the field
sections.py        the sections of an experiment, one class each
config.py          Experiment: the whole schema, and the points of a sweep
foreign.py         policies of other packages: what goes wrong in them
scene.py           Scene: what an experiment plays with, loaded
cache_setup.py     a run's simulated cache, put together
planning_times.py  how long a policy's plans take on this machine
simulate.py        one run, from its scene to its record; and what no run can exceed
basis.py           what the results rest on: provenance, and what the cluster assumes
lockfile.py        experiment.lock.yaml: from which the same bytes come again
folder.py          the folder that results go to: who writes there, what may be replaced, which runs have ended
conclude.py        what is made of all runs: the table, the figures, the report
sweep.py           the same of a sweep
results.py         Results: what an experiment came to, for notebooks and scripts
runner.py          running all of it: in parallel, resumable
sizing.py          the smallest cluster that keeps a promise
"""

from argus_sim.experiment.config import Experiment, Point, expand, is_lock
from argus_sim.experiment.sections import Cluster, Peak, PolicyConfig, ProfileConfig, Slo, TraceConfig

__all__ = [
    "Cluster",
    "Experiment",
    "Peak",
    "Point",
    "PolicyConfig",
    "ProfileConfig",
    "Slo",
    "TraceConfig",
    "expand",
    "is_lock",
]
