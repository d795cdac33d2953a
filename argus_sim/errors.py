"""Errors a user can read.

Everything that is wrong with what a user handed over (a config, a trace, a profile, a flag) is an
:class:`InputError`: one message that says where it is, what was found and what is allowed. The command line
prints it and exits with code 2; a traceback is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """Something the user gave is wrong.

    Args:
        message: What was found and what is allowed, one sentence or two.
        where: The file, line or field, e.g. ``"experiments/fig7.yaml: cluster.workers"``.
    """

    def __init__(self, message: str, *, where: str | None = None) -> None:
        self.message = message
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments are lost by the default pickling, and errors cross process boundaries.
        return (_rebuild, (self.message, self.where))


def _rebuild(message: str, where: str | None) -> InputError:
    return InputError(message, where=where)


#: What pydantic finds missing or of the wrong shape, in the words of YAML.
_SHAPES = {
    "missing": "is required",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
}


def wording(problem: Mapping[str, Any]) -> str:
    """What is wrong by one of pydantic's problems, for people who write YAML."""
    message: str = problem["msg"]
    return _SHAPES.get(problem["type"], message.removeprefix("Value error, "))


def did_you_mean(found: str, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest allowed one, if any is near, and all of them.

    >>> did_you_mean("agrus", ["argus", "pac"])
    "; did you mean 'argus'? Allowed: argus, pac."
    >>> did_you_mean("x", ["argus", "pac"])
    '. Allowed: argus, pac.'
    """
    names = sorted(set(allowed))
    close = difflib.get_close_matches(found, names, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Allowed: {', '.join(names) if names else 'nothing'}."
