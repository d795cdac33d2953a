"""What a run is asked for: a trace's arrivals with a prompt and a deadline each.

workload.py   Workload: the requests of a run, as arrays; and the streams of random numbers of a run
prompts.py    what prompts may be drawn like: sessions, drift, bursts, or the texts of a log
stand_ins.py  the profile's prompt that stands in for a text of a log
"""

from argus_sim.workload.workload import Workload, stream

__all__ = ["Workload", "stream"]
