"""Policies of other packages: what goes wrong in one is its author's, and is said with the line that it is in."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from argus_sim.policies.base import Policy


def raised(policy: type[Policy], error: BaseException) -> str | None:
    """What a policy of another package raised, and at which of its lines; None where it was not its code.

    What a shipped policy raises is a fault of ours, and wants its traceback.
    """
    if policy.__module__.partition(".")[0] == "argus_sim":
        return None
    package = policy.__module__.partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None)
    if file is None:
        return None
    path = Path(file)
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path
        or (path.name == "__init__.py" and path.parent in Path(frame.filename).parents)
    ]
    if not own:
        # A call with arguments that its function does not take is raised where it was called: in our code.
        theirs = (c.__qualname__ for c in policy.__mro__ if c.__module__.partition(".")[0] == package)
        if isinstance(error, TypeError) and str(error).startswith(tuple(f"{name}." for name in theirs)):
            return f"policy {policy.name!r} is called as argus_sim.policies.base.Policy says, but {error}"
        return None
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"policy {policy.name!r} raised {what} ({own[-1].filename}, line {own[-1].lineno}, in {own[-1].name})"
