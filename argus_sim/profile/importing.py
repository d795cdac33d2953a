"""Profiles from public data sets of per-prompt quality: real ratings under borrowed latencies.

A format is one function and one entry of :data:`IMPORTERS`. None of these data sets has latencies, so an importer
takes them from a profile that is handed to it and marks, variant by variant, what stands in for what.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pandas as pd
from pydantic import ConfigDict, ValidationError, validate_call

from argus_sim.errors import InputError, did_you_mean, wording
from argus_sim.importers.requests import GenTD26Requests
from argus_sim.profile.profile import Profile
from argus_sim.profile.rating_profile import Borrowed, Stand, build, read_table
from argus_sim.profile.ratings import (
    import_agiqa3k,
    import_aigiqa20k,
    import_csv,
    import_imagenhub,
    import_tifa160,
)
from argus_sim.provenance import Provenance

__all__ = ["IMPORTERS", "FormatOption", "import_genai_bench", "import_profile", "options_of"]


_NEEDED: Final = {
    "latency_from": "the profile that latencies are borrowed from, e.g. latency_from=diffserve-a100",
    "latency_of": "the variant of that profile whose latencies each model gets, e.g. latency_of={mine: sdxl}",
}


class FormatOption(NamedTuple):
    """An option of a format: what it takes, and its default; a needed one has a `description`."""

    name: str
    needed: bool
    default: Any
    choices: tuple[str, ...]
    description: str


def options_of(format: str) -> tuple[FormatOption, ...]:
    """What the format's function takes beyond the path. `format` is a key of :data:`IMPORTERS`."""
    importer = IMPORTERS[format]
    types = get_type_hints(importer)
    found = []
    for name, parameter in inspect.signature(importer).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        needed = parameter.default is inspect.Parameter.empty
        choices = get_args(types[name]) if get_origin(types[name]) is Literal else ()
        default = None if needed else parameter.default
        found.append(FormatOption(name, needed, default, choices, _NEEDED.get(name, "")))
    return tuple(found)


def import_profile(format: str, path: str | os.PathLike[str], **options: Any) -> Profile:
    """Import a public data set as a profile.

    Args:
        format: A key of :data:`IMPORTERS`.
        path: The data set's file.
        options: What the format's function takes beyond the path.

    Raises:
        InputError: The format or an option is unknown, or the file is not what it should be.
    """
    if format not in IMPORTERS:
        raise InputError(f"unknown format {format!r}{did_you_mean(format, IMPORTERS)}")
    known = options_of(format)
    names = [option.name for option in known]
    for name in options:
        if name not in names:
            raise InputError(f"format {format!r} has no option {name!r}{did_you_mean(name, names)}")
    for option in known:
        if option.needed and option.name not in options:
            about = f": {option.description}" if option.description else ""
            raise InputError(f"format {format!r} needs the option {option.name!r}{about}")
    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(IMPORTERS[format])
    try:
        profile: Profile = checked(path, **options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{wording(first)}, found {first['input']!r}", where=f"format {format}: {place}"
        ) from None
    return profile


_GENAI_MODELS: Final[Mapping[str, Stand]] = {
    "SDXL_Base": Stand("sdxl", 50, "sdxl", None),
    "SDXL_2_1": Stand(
        "sd21", 50, "sd15", "as SD 1.5: the same U-Net layout with 865.9 M parameters against 859.5 M, at 512 px"
    ),
    "SDXL_Turbo": Stand(
        "sdxl-turbo",
        1,
        "sdxl-lightning",
        "as SDXL-Lightning in 2 steps at 1024 px: the same U-Net, an upper bound for 1 step at 512 px",
    ),
}

_GENAI: Final = "GenAI-Bench (arXiv 2406.13743): human ratings of text-image alignment, 1 to 5, three raters"
_GENTD26: Final = (
    "GenTD26 (Lin et al., SoCC 2025), github.com/alibaba/clusterdata, cluster-trace-v2026-GenAI:"
    " basemodel_update_latency"
)


def import_genai_bench(
    path: str | os.PathLike[str],
    *,
    latency_from: Profile | str,
    models: Sequence[str] = ("SDXL_Base", "SDXL_2_1", "SDXL_Turbo"),
    loads_file: str | os.PathLike[str] | None = None,
    name: str = "genai-bench",
) -> Profile:
    """Human ratings of the same prompts under three models (GenAI-Bench).

    Levels follow latency, slowest first, so mean quality need not fall along the ladder: raters put SDXL-Turbo
    above the slower SD 2.1. A rater is a row of the quality table, under ``seed`` 1, 2, 3. With three raters and
    one image per prompt and model, ratings are noisy; the best of several noisy means is too good, so *relative*
    quality is understated, for every policy alike.

    Args:
        path: CSV with columns prompt_id, prompt, model, human_scores (``"4|5|3"``); ratings outside 1..5 are left
            out, as the data set's authors do.
        latency_from: Profile (or its name or folder) with the variants sdxl, sd15 and sdxl-lightning.
        models: Models of the data set to take; the slowest becomes the base. Known: SDXL_Base, SDXL_2_1 (that is
            SD 2.1), SDXL_Turbo.
        loads_file: GenTD26's component latencies (Parquet or CSV; columns metric, value in ms), whose
            ``base_model_load`` becomes every model's load time. None: the load times of `latency_from`.
        name: Of the profile.

    Raises:
        InputError: A file is not what it should be, or a model is unknown or unrated.
    """
    source = latency_from if isinstance(latency_from, Profile) else Profile.load(latency_from)
    for model in models:
        if model not in _GENAI_MODELS:
            raise InputError(f"unknown model {model!r}{did_you_mean(model, _GENAI_MODELS)}")
    stands = {model: _GENAI_MODELS[model] for model in models}

    def seconds(model: str) -> float:
        return source.latency(source.variant_id(stands[model].latency_of), 1).mean_s

    order = sorted(stands, key=seconds, reverse=True)
    ratings = _genai_ratings(path, order)
    rated = Provenance(kind="recorded", source=_GENAI, licence="Apache-2.0")
    return build(
        name,
        f"Human ratings of {ratings['prompt'].nunique()} prompts (GenAI-Bench) with latencies of profile"
        f" {source.name!r}, some of which stand in for those of similar models."
        " The seeds of the quality table are raters.",
        source,
        [(model, stands[model]) for model in order],
        ratings,
        metric="human_alignment",
        rated=rated,
        loads=None if loads_file is None else _recorded_loads(loads_file, [stands[m].variant for m in order]),
        where=str(path),
    )


def _genai_ratings(path: str | os.PathLike[str], models: Sequence[str]) -> pd.DataFrame:
    """One row per rating: prompt_id, prompt, model, seed (rater, from 1), score."""
    frame = read_table(path, ("prompt_id", "prompt", "model", "human_scores"))
    for model in models:
        if model not in set(frame["model"]):
            raise InputError(f"no ratings of model {model!r}", where=str(path))
    frame = frame.loc[frame["model"].isin(models)]
    scores = [str(text).split("|") for text in frame["human_scores"]]
    raters: list[Any] = [list(range(1, len(row) + 1)) for row in scores]
    long = frame.assign(score=pd.Series(scores, index=frame.index), seed=raters).explode(["score", "seed"])
    score = pd.to_numeric(long["score"], errors="coerce")
    if score.isna().any():
        prompt, found = long.loc[score.isna(), ["prompt_id", "human_scores"]].iloc[0]
        raise InputError(
            f"human_scores must be numbers joined by '|', found {found!r} for prompt {prompt!r}", where=str(path)
        )
    long = long.assign(score=score, seed=long["seed"].astype(int)).loc[score.between(1, 5)]
    return long.rename(columns={"prompt": "text", "prompt_id": "prompt"})


def _recorded_loads(path: str | os.PathLike[str], models: Sequence[str]) -> Borrowed:
    """Base-model loads of GenTD26, all of them, for every model."""
    frame = read_table(path, ("metric", "value"))
    seconds = frame.loc[frame["metric"] == "base_model_load", "value"].astype("float64") / 1000.0
    if seconds.empty:
        raise InputError("no rows with metric 'base_model_load'", where=str(path))
    loads = [pd.DataFrame({"model": model, "source": "disk", "seconds": seconds}) for model in models]
    how = "loads of a production service's base models, the same sample for every model"
    return pd.concat(loads), (
        Provenance(kind="recorded", source=_GENTD26, derived=how, licence=GenTD26Requests.licence),
    )


#: format -> function of a path and keyword options
IMPORTERS: Final[dict[str, Callable[..., Profile]]] = {
    "genai-bench": import_genai_bench,
    "agiqa-3k": import_agiqa3k,
    "tifa-160": import_tifa160,
    "imagenhub": import_imagenhub,
    "aigiqa-20k": import_aigiqa20k,
    "csv": import_csv,
}
