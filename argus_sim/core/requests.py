"""The requests of a run as columns; a request is a row."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from argus_sim.domain import Request


class Requests:
    """Columns that everybody may read: arrival, deadline and prompt.

    ``array`` rather than NumPy, since the engine reads single elements: an element of an ``array`` is a Python
    float at a third of the cost, and the memory is the same. A live host appends; a simulation starts full.
    """

    __slots__ = ("arrival_s", "deadline_s", "prompt")

    def __init__(self) -> None:
        self.arrival_s = array("d")
        self.deadline_s = array("d")
        self.prompt = array("i")

    @classmethod
    def of(
        cls,
        arrival_s: npt.NDArray[np.float64],
        deadline_s: npt.NDArray[np.float64],
        prompt: npt.NDArray[np.int32],
    ) -> Requests:
        """From columns of equal length; times in seconds."""
        if not len(arrival_s) == len(deadline_s) == len(prompt):
            raise ValueError("columns differ in length")
        requests = cls()
        requests.arrival_s.frombytes(np.ascontiguousarray(arrival_s, dtype=np.float64).tobytes())
        requests.deadline_s.frombytes(np.ascontiguousarray(deadline_s, dtype=np.float64).tobytes())
        requests.prompt.frombytes(np.ascontiguousarray(prompt, dtype=np.int32).tobytes())
        return requests

    def append(self, arrival_s: float, deadline_s: float, prompt: int) -> int:
        """Add one request; returns its row."""
        self.arrival_s.append(arrival_s)
        self.deadline_s.append(deadline_s)
        self.prompt.append(prompt)
        return len(self.arrival_s) - 1

    def __len__(self) -> int:
        return len(self.arrival_s)

    def cursor(self) -> Request:
        return Request(self.arrival_s, self.deadline_s, self.prompt)

    def prompts_between(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """A copy: an ``array`` cannot grow while a NumPy view of it is alive."""
        return np.array(self.prompt[start:stop], dtype=np.int32)
