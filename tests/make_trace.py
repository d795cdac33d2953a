"""Traces made by hand, and any that hypothesis thinks of."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from argus_sim.provenance import Provenance
from argus_sim.trace import Trace

ORIGIN = (Provenance(kind="synthetic", source="by hand"),)


def make(times: object, duration_s: float = 100.0, **other: object) -> Trace:
    return Trace("made", np.asarray(times), duration_s, ORIGIN, **other)  # type: ignore[arg-type]


@st.composite
def traces(draw: st.DrawFn, *, prompts: bool = True) -> Trace:
    times = sorted(draw(st.lists(st.floats(0, 1e6), min_size=1, max_size=30)))
    duration_s = times[-1] + draw(st.floats(1e-3, 1e3))
    prompt = None
    if prompts and draw(st.booleans()):
        prompt = tuple(draw(st.lists(st.text(), min_size=len(times), max_size=len(times))))
    return make(times, duration_s, prompt=prompt, transformations=tuple(draw(st.lists(st.text(), max_size=2))))
