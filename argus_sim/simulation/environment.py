"""A SimPy environment that replays a trace fast.

A replay has millions of arrivals whose times are known beforehand, and one event per batch. Putting each
arrival through the event heap as a process costs more than everything else together. So this environment
merges one sorted stream of arrivals with the heap, and schedules batch ends as bare :class:`Tick` objects.
All else (controllers, faults, the network) are ordinary SimPy processes in the same heap.

:class:`StockEnvironment` does the same with nothing but what SimPy offers. It is slower and obviously right:
the tests hold the two to the very same results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import simpy
from simpy.events import NORMAL

from argus_sim.core.commands import Command

#: Something happened at a time, to whom the key says; returns commands, often none.
Happening = Callable[[float, int], Sequence[Command]]
#: Carries commands out.
Carry = Callable[[float, Sequence[Command]], None]


class Tick:
    """A happening to come: ``fire(now, key)`` is called. May be scheduled again afterwards."""

    __slots__ = ("fire", "key")

    def __init__(self, fire: Happening, key: int = -1) -> None:
        self.fire = fire
        self.key = key

    def cancel(self) -> None:
        """Make nothing of it when its time comes (the heap cannot forget it)."""
        self.fire = _nothing


def _ignore(now: float, commands: Sequence[Command]) -> None:
    pass


def _nothing(now: float, key: int) -> Sequence[Command]:
    return ()


class Environment(Protocol):
    """What the host needs of either environment, beyond SimPy's own."""

    @property
    def now(self) -> float: ...

    def stream(self, times_s: npt.NDArray[np.float64], arrive: Happening, carry: Carry) -> None:
        """Call ``arrive(time, index)`` for each of these sorted times. At most one stream.

        What it and the ticks answer goes to ``carry``.
        """

    def tick_at(self, time_s: float, tick: Tick) -> None:
        """Fire a tick at a time that is not in the past."""

    def lane(self, fire: Happening) -> Callable[[float, int], None]:
        """A first-in-first-out lane: call what this returns with (time, key) to have ``fire`` called then.

        For what takes a constant time: times must not decrease from call to call. At most one lane.
        """

    def process(self, generator: Any) -> Any: ...

    def timeout(self, delay: float) -> Any: ...

    def run(self, until: Any = None) -> Any: ...


#: Arrivals are turned from NumPy into Python floats this many at a time: all at once would cost 32 bytes each.
_CHUNK = 1 << 14

#: The stock twin keeps the order of the fast environment at equal times by priorities around SimPy's own.
_ARRIVAL, _LANE = -2, -1


class StreamEnvironment(simpy.Environment):
    """SimPy's environment with an arrival stream beside the heap and ticks on it.

    What takes a constant time (an answer of the cache) comes in the order in which it was asked for, and so needs
    no heap either: it queues in a lane. At equal times an arrival goes first, then the lane, then the heap, whose
    entries keep SimPy's order (time, priority, order of scheduling).
    """

    def __init__(self, initial_time: float = 0.0) -> None:
        super().__init__(initial_time)
        self._times_s: npt.NDArray[np.float64] = np.empty(0)
        self._arrive: Happening = _nothing
        self._carry: Carry = _ignore
        self._lane: deque[tuple[float, int]] = deque()
        self._lane_fire: Happening | None = None

    def stream(self, times_s: npt.NDArray[np.float64], arrive: Happening, carry: Carry) -> None:
        if self._carry is not _ignore:
            raise ValueError("this environment has a stream already")
        self._times_s, self._arrive, self._carry = times_s, arrive, carry

    def tick_at(self, time_s: float, tick: Tick) -> None:
        heappush(self._queue, (time_s, NORMAL, next(self._eid), tick))  # type: ignore[misc]

    def lane(self, fire: Happening) -> Callable[[float, int], None]:
        if self._lane_fire is not None:
            raise ValueError("this environment has a lane already")
        self._lane_fire = fire
        append = self._lane.append
        return lambda time_s, key: append((time_s, key))

    def run(self, until: Any = None) -> Any:
        """Run until nothing is left. ``until`` is not supported: a replay ends when its work is done."""
        if until is not None:
            raise ValueError("a replay ends when nothing is left to happen; until is not supported")
        # SimPy's type for what is on its heap knows only events; ours also holds ticks.
        queue: list[tuple[float, int, int, Any]] = self._queue  # type: ignore[assignment]
        step, carry, arrive = self.step, self._carry, self._arrive
        lane, answer = self._lane, self._lane_fire or _nothing
        times_s, index = self._times_s, count()
        for start in range(0, len(times_s), _CHUNK):
            for time_s, row in zip(times_s[start : start + _CHUNK].tolist(), index, strict=False):
                while True:
                    if lane and lane[0][0] < time_s and not (queue and queue[0][0] < lane[0][0]):
                        now, key = lane.popleft()
                        self._now = now
                        commands = answer(now, key)
                        if commands:
                            carry(now, commands)
                    elif queue and queue[0][0] < time_s:
                        tick = queue[0][3]
                        if tick.__class__ is Tick:
                            self._now = now = heappop(queue)[0]
                            commands = tick.fire(now, tick.key)
                            if commands:
                                carry(now, commands)
                        else:
                            step()
                    else:
                        break
                self._now = time_s
                commands = arrive(time_s, row)
                if commands:
                    carry(time_s, commands)
        while queue or lane:
            if lane and not (queue and queue[0][0] < lane[0][0]):
                self._now, key = lane.popleft()
                carry(self._now, answer(self._now, key))
            elif queue[0][3].__class__ is Tick:
                self._now, _, _, tick = heappop(queue)
                carry(self._now, tick.fire(self._now, tick.key))
            else:
                step()
        return None


class StockEnvironment(simpy.Environment):
    """The twin: arrivals by a process, ticks by events with a callback. For tests."""

    def stream(self, times_s: npt.NDArray[np.float64], arrive: Happening, carry: Carry) -> None:
        self._carry = carry

        def arrivals(times: Sequence[float]) -> Generator[simpy.Event, Any, None]:
            for index, time_s in enumerate(times):
                # At the exact time, where a timeout would add a rounded delay to now.
                yield self._event_at(time_s, _ARRIVAL)
                carry(time_s, arrive(time_s, index))

        self.process(arrivals(times_s.tolist()))

    def tick_at(self, time_s: float, tick: Tick) -> None:
        event = self._event_at(time_s, NORMAL)
        assert event.callbacks is not None
        event.callbacks.append(lambda _: self._carry(time_s, tick.fire(time_s, tick.key)))

    def lane(self, fire: Happening) -> Callable[[float, int], None]:
        def later(time_s: float, key: int) -> None:
            event = self._event_at(time_s, _LANE)
            assert event.callbacks is not None
            event.callbacks.append(lambda _: self._carry(time_s, fire(time_s, key)))

        return later

    def _event_at(self, time_s: float, priority: Any) -> simpy.Event:
        event = simpy.Event(self)
        event._ok, event._value = True, None
        heappush(self._queue, (time_s, priority, next(self._eid), event))
        return event
