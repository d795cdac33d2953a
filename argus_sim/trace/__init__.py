"""When requests arrive: a trace, read from a file, made by a generator or by a model of a recorded one.

Public formats are read by :mod:`argus_sim.importers`.

trace.py      Trace: arrivals and what can be done to them; those that ship
file.py       trace files, CSV and Parquet
stats.py      what a trace is like
rate.py       rates over time, of which arrivals are drawn
arrivals.py   generators, as a YAML file says them
fitted.py     the model of a recorded trace
fit.py        estimating it, and how well it does
fourier.py    its daily course as a Fourier series
"""

from argus_sim.trace.trace import Trace, find_trace, is_model, shipped_models, shipped_traces

__all__ = ["Trace", "find_trace", "is_model", "shipped_models", "shipped_traces"]
