"""Options that were given and have no effect: better refused than ignored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import typer

from argus_sim.errors import InputError

_OF_QUALITY: Final = ("--seeds", "--scorers", "--metric", "--sheets")
#: Option -> what has no effect beside it.
_NO_EFFECT: Final = {
    "--latency-only": _OF_QUALITY,
    "--random-weights": _OF_QUALITY,
    "--quality-only": ("--batch-sizes", "--cell-seconds", "--idle-seconds", "--rounds"),
}
#: What has one with ``--device meta``.
_OF_SIZES: Final = ("--device", "--zoo", "--models", "--random-weights", "--quiet")


def refuse_ignored(context: typer.Context) -> None:
    """Raise InputError for what was given on the command line beside something that leaves it without effect."""
    sources = {p.opts[0]: context.get_parameter_source(p.name or "") for p in context.command.params}
    given = [option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if context.invoked_subcommand is not None:
        _refuse(given, f"the command {context.invoked_subcommand!r}")
    elif context.params["device"] == "meta":
        _refuse((option for option in given if option not in _OF_SIZES), "--device meta, which compares sizes")
    else:
        for option in given:
            _refuse((other for other in _NO_EFFECT.get(option, ()) if other in given), option)


def _refuse(options: Iterable[str], beside: str) -> None:
    if where := ", ".join(options):
        raise InputError(f"has no effect with {beside}: leave out one or the other", where=where)
