"""Reading YAML into the classes of an experiment, with errors that name the place, and setting single values."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from argus_sim.errors import InputError, did_you_mean, wording


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; :class:`InputError` names the file and the line."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"there is no such file{hint}", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise InputError(f"not YAML: {getattr(error, 'problem', error)}", where=f"{path}{line}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise InputError(f"an experiment is a mapping of keys to values, found {found}", where=str(path))
    return data


def override(data: dict[str, Any], setting: str) -> None:
    """Carry out a setting of the command line, ``key.path=value``, the value as YAML; list items by number."""
    key, equals, text = setting.partition("=")
    where = f"--set {setting}"
    if not equals or not key:
        raise InputError("must look like key=value or section.key=value", where=where)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"the value {text!r} is not YAML", where=where) from None
    put(data, key, value, where=where)


def put(data: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Set the value at a path like ``cluster.workers`` or ``policies.0.params.tolerance``; ``*`` is every item.

    Raises:
        InputError: There is no such item, ``*`` stands for none, or something on the way is a value.
    """
    head, star, rest = key.partition(".*.")
    if star:
        at: Any = data
        for part in head.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        if not isinstance(at, list):
            raise InputError(f"{head} is no list", where=where)
        if not at:
            raise InputError(f"{head} has no items, so {key} sets nothing", where=where)
        for index in range(len(at)):
            put(data, f"{head}.{index}.{rest}", value, where=where)
        return
    parts = key.split(".")
    at = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(at, list):
            if not part.isdecimal() or int(part) >= len(at):
                items = f"{'.'.join(parts[:depth])} has items 0 to {len(at) - 1}"
                raise InputError(f"{items}, not {part!r}", where=where)
            if last:
                at[int(part)] = value
            elif isinstance(at[int(part)], str):
                name = at[int(part)]  # a trace or a policy in short
                at[int(part)] = {"name": name, "file": name} if parts[0] == "traces" else {"name": name}
            at = at[int(part)]
        elif isinstance(at, dict):
            if last:
                at[part] = value
            else:
                if at.get(part) is None:
                    at[part] = {}
                at = at[part]
        else:
            raise InputError(f"{'.'.join(parts[:depth])} is a value, it has no {part!r}", where=where)


def input_error(error: ValidationError, model: type[BaseModel], data: Any, where: str) -> InputError:
    """The first problem, with the YAML path, what was found, and the nearest allowed key."""
    problems = error.errors(include_url=False)
    # A misspelt key often leaves a required one missing: the misspelling is what to tell.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path = _yaml_path(first["loc"], data)
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(path[-1], _fields_at(model, first["loc"][:-1]))
        elsewhere = _in_a_section(model, path[-1]) if len(path) == 1 else None
        if elsewhere is not None and hint.startswith("."):
            hint = f"; did you mean {elsewhere!r}?{hint.removeprefix('.')}"
        return InputError(f"unknown key {path[-1]!r}{hint}", where=f"{where}: {'.'.join(path)}")
    if first["type"] == "union_tag_invalid":
        tag, expected = first["ctx"]["tag"], re.findall(r"'(.*?)'", first["ctx"]["expected_tags"])
        return InputError(
            f"unknown kind {tag!r}{did_you_mean(tag, expected)}", where=f"{where}: {'.'.join(path)}"
        )
    found = first["input"]
    text = "" if isinstance(found, dict) or first["type"] == "missing" else f"; found {found!r}"
    return InputError(f"{wording(first)}{text}", where=f"{where}: {'.'.join(path)}" if path else where)


def _yaml_path(location: tuple[int | str, ...], data: Any) -> list[str]:
    """The place in the YAML: pydantic also puts the names of the members of a union into it."""
    path: list[str] = []
    for depth, part in enumerate(location):
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int)):
            data = data[part]
        elif not (isinstance(data, dict) and depth == len(location) - 1):
            continue
        path.append(str(part))
    return path


def _in_a_section(model: type[BaseModel], key: str) -> str | None:
    """The path of a key that one section has, like ``cluster.workers``."""
    found = [
        f"{name}.{key}"
        for name, field in model.model_fields.items()
        if get_origin(field.annotation) is not tuple
        and any(key in m.model_fields for m in _models(field.annotation))
    ]
    return found[0] if len(found) == 1 else None


def _fields_at(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """The fields of the section at a place in the YAML, followed through lists and unions."""
    for part in location:
        if isinstance(part, int):
            continue
        if get_origin(model) is dict:
            model = get_args(model)[1]
            continue
        options = [m for m in _models(model) if part in m.model_fields]
        named = [m for m in _models(model) if m.__name__ == part or _kind(m) == part]
        if named:
            model = named[0]
        elif options:
            model = options[0].model_fields[part].annotation
        else:
            return []
    return sorted({name for m in _models(model) for name in m.model_fields})


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    choices = getattr(field.annotation, "__args__", ()) if field else ()
    return choices[0] if choices else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All pydantic models within a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = getattr(annotation, "__value__", annotation)
    return [m for argument in getattr(inner, "__args__", ()) for m in _models(argument)]
