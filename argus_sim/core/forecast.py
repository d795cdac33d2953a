"""Demand forecasts from the arrivals seen so far. One class and one entry in ``Forecast`` per kind."""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Annotated, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from argus_sim.core.view import ClusterView

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Forecaster(Protocol):
    """Is told each rate that was observed, and says the rate to expect; all in requests/s."""

    def observe(self, rate_per_s: float, over_s: float) -> None: ...

    def jump_to(self, rate_per_s: float) -> None: ...

    def forecast(self) -> float: ...


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EwmaForecast(_Config):
    """Exponentially weighted mean of the observed rates."""

    kind: Literal["ewma"] = "ewma"
    half_life_s: Positive = 30.0

    def build(self) -> Forecaster:
        return Ewma(self.half_life_s)


class WindowForecast(_Config):
    """The highest rate of the last ``windows`` observations (1: what was seen last)."""

    kind: Literal["window-max"]
    windows: Annotated[int, Field(ge=1)] = 6

    def build(self) -> Forecaster:
        return WindowMax(self.windows)


Forecast = Annotated[EwmaForecast | WindowForecast, Field(discriminator="kind")]


class Ewma:
    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._value: float | None = None

    def observe(self, rate_per_s: float, over_s: float) -> None:
        if self._value is None:
            self._value = rate_per_s
        else:
            keep = 0.5 ** (over_s / self._half_life_s)
            self._value = keep * self._value + (1.0 - keep) * rate_per_s

    def jump_to(self, rate_per_s: float) -> None:
        self._value = rate_per_s

    def forecast(self) -> float:
        return self._value or 0.0


class WindowMax:
    def __init__(self, windows: int) -> None:
        self._rates: deque[float] = deque(maxlen=windows)

    def observe(self, rate_per_s: float, over_s: float) -> None:
        self._rates.append(rate_per_s)

    def jump_to(self, rate_per_s: float) -> None:
        self._rates.clear()
        self._rates.append(rate_per_s)

    def forecast(self) -> float:
        return max(self._rates, default=0.0)


class Demand:
    """Feeds a forecaster from the view, and notices when demand leaves the forecast.

    A jump is when the arrivals of the last ``window`` observations are further from the forecast than chance
    explains: by more than ``SIGMAS`` standard deviations of a Poisson count.
    """

    SIGMAS = 4.0
    #: Weight of the last look in the dispersion, and over how long it is counted.
    MEMORY, WINDOW_S = 0.02, 30.0

    def __init__(self, forecaster: Forecaster, window: int = 3) -> None:
        self._forecaster = forecaster
        self._dispersion = 1.0
        self._ahead: deque[tuple[float, int, float]] = deque()
        self._seen: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=window + 1)

    def look(self, view: ClusterView) -> bool:
        """Take note of the arrivals since the last look; True when demand has jumped."""
        (last_s, last), now, arrived = self._seen[-1], view.now_s, view.arrived
        if now <= last_s:
            return False
        expected_per_s = self._forecaster.forecast()
        self._compare(now, arrived)
        self._seen.append((now, arrived))
        first_s, first = self._seen[0]
        mean = expected_per_s * (now - first_s)
        jumped = abs(arrived - first - mean) > self.SIGMAS * math.sqrt(max(mean, 1.0))
        if jumped and last_s > 0.0:
            since_s, since = self._full_look_ago(now)
            self._forecaster.jump_to((arrived - since) / (now - since_s))
            # What was before the jump says nothing about what is after it.
            self._seen.clear()
            self._seen.extend([(since_s, since), (now, arrived)])
            return True
        self._forecaster.observe((arrived - last) / (now - last_s), now - last_s)
        return False

    def _full_look_ago(self, now: float) -> tuple[float, int]:
        """The last look that is as long ago as looks are apart: one out of turn, when a worker comes or goes, may
        follow another at once, and then says next to nothing of a rate."""
        times_s = [at_s for at_s, _ in self._seen]
        apart_s = max(later - sooner for sooner, later in itertools.pairwise(times_s))
        return next(look for look in reversed(self._seen) if now - look[0] >= apart_s * (1.0 - 1e-9))

    def _compare(self, now: float, arrived: int) -> None:
        """What came in the last ``WINDOW_S``, beside what was forecast before it."""
        ahead = self._ahead
        while ahead and now - ahead[0][0] >= self.WINDOW_S:
            at_s, then, per_s = ahead.popleft()
            expected = per_s * (now - at_s)
            if expected >= 1.0:
                off = min((arrived - then - expected) ** 2, self.SIGMAS**2 * expected) / expected
                self._dispersion += self.MEMORY * (off - self._dispersion)
        ahead.append((now, arrived, self._forecaster.forecast()))

    def dispersion(self) -> float:
        """Mean square of what came beside the forecast, over the forecast: 1 for Poisson arrivals of that rate.

        Arrivals in clumps raise it, and so does a forecast that is wrong. To a quarter, and at least 1.
        """
        return max(1.0, round(4.0 * self._dispersion) / 4.0)

    def forecast_per_s(self) -> float:
        return self._forecaster.forecast()


class PerfectDemand:
    """Knows the future: past the oracle boundary, for ablations that say so by name (``forecast: perfect``).

    Takes the place of :class:`Demand`. The forecast is the rate at which requests will arrive in the time that a
    plan is made for, and a jump is when that leaves the last forecast by more than chance explains.

    Args:
        future_s: float64[n], sorted: when all requests arrive.
        period_s: How far to look ahead.
    """

    def __init__(self, future_s: npt.NDArray[np.float64], period_s: float) -> None:
        self._future_s = future_s
        self._period_s = period_s
        self._rate_per_s = self._next_per_s(0.0)

    def look(self, view: ClusterView) -> bool:
        """As :meth:`Demand.look`."""
        rate_per_s = self._next_per_s(view.now_s)
        mean = self._rate_per_s * self._period_s
        off = abs(rate_per_s * self._period_s - mean)
        jumped = off > Demand.SIGMAS * math.sqrt(max(mean, 1.0))
        self._rate_per_s = rate_per_s
        return jumped

    def dispersion(self) -> float:
        """Nothing is known to be unlike the forecast, but requests do not come evenly: as Poisson arrivals."""
        return 1.0

    def forecast_per_s(self) -> float:
        return self._rate_per_s

    def _next_per_s(self, now: float) -> float:
        first, last = np.searchsorted(self._future_s, [now, now + self._period_s], side="right")
        return float(last - first) / self._period_s
