"""Numbers from the record of a run, and intervals over seeds.

metrics.py    METRICS: formula, unit and direction of each; a run's summary, its batches and its timeline
intervals.py  means over seeds with their intervals, paired differences, rankings
cache.py      what a simulated cache did
"""

from argus_sim.metrics.intervals import Interval, aggregate, compare, interval, paired
from argus_sim.metrics.metrics import METRICS, Metric, batches, peak, summarise, timeline

__all__ = [
    "METRICS",
    "Interval",
    "Metric",
    "aggregate",
    "batches",
    "compare",
    "interval",
    "paired",
    "peak",
    "summarise",
    "timeline",
]
