"""Finding policies: shipped or brought by another package, all through the same entry point group."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from argus_sim.errors import InputError, did_you_mean, wording
from argus_sim.policies.base import Params, Policy

GROUP = "argus_sim.policies"


def names() -> list[str]:
    """The names of all installed policies."""
    return sorted(entry_points(group=GROUP).names)


def find(name: str, *, where: str | None = None) -> type[Policy]:
    """A policy class by its entry point's name, or by ``package.module:Class``.

    Raises:
        InputError: There is none, it cannot be imported, or it is not a policy.
    """
    if ":" in name:
        found = _import(name, where)
    else:
        points = entry_points(group=GROUP)
        if name not in points.names:
            own = " One of your own is MODULE:CLASS, with the module on PYTHONPATH."
            raise InputError(f"unknown policy {name!r}{did_you_mean(name, points.names)}{own}", where=where)
        found = _import(points[name].value, where)
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise InputError(f"{name!r} is not a subclass of argus_sim.policies.base.Policy", where=where)
    if not isinstance(getattr(found, "name", None), str):
        raise InputError(f'{name!r} has no name: give the class one, name = "..."', where=where)
    if not (isinstance(found.Params, type) and issubclass(found.Params, Params)):
        raise InputError(f"Params of {name!r} is not a subclass of argus_sim.policies.base.Params", where=where)
    return found


def _import(reference: str, where: str | None) -> Any:
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            hint = "; its folder must be on PYTHONPATH (PYTHONPATH=. for this one)"
        raise InputError(f"policy {reference!r} cannot be imported: {error}{hint}", where=where) from error


def parameters(policy: type[Policy], values: dict[str, Any], *, where: str) -> Params:
    """Check a policy's parameters against its ``Params``; the error names the parameter."""
    try:
        return policy.Params(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            hint = did_you_mean(field, policy.Params.model_fields)
            raise InputError(f"policy {policy.name!r} has no parameter {field!r}{hint}", where=where) from None
        found = f"; found {first['input']!r}" if not isinstance(first["input"], dict) else ""
        raise InputError(f"{wording(first)}{found}", where=f"{where}.{field}" if field else where) from None
