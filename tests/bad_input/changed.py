"""The small experiment with a change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tests.make_experiment import content


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data = copy.deepcopy(content())
    change(data)
    return data
