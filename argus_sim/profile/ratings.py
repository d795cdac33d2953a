"""Public data sets of human ratings of generated images, as rows of one shape, and the profiles made of them.

A row is one rating: ``prompt``, ``text``, ``model``, ``seed`` (the rater, from 1), ``score``. Raters stay apart,
so that how much they disagree (:func:`components`) is not taken for a difference between prompts. Data sets that
publish only means have one row per prompt and model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from argus_sim.errors import InputError, did_you_mean
from argus_sim.importers.base import files_in
from argus_sim.profile.profile import Profile
from argus_sim.profile.rating_profile import Stand, build, read_table
from argus_sim.provenance import Provenance

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Components:
    """Standard deviations of the parts of a rating: score = mean + prompt + model + prompt x model + rater.

    Attributes:
        prompt: Of the prompts' effect, shared by all models.
        model: Of the models' effect.
        interaction: Of what a model makes of one prompt more than of others: what routing by prompt can use.
        rater: Of raters (and seeds) who see the same prompt and model; NaN where there is one rating each, and
            then it is part of the interaction.
    """

    prompt: float
    model: float
    interaction: float
    rater: float

    def described(self) -> str:
        """For a profile's description."""
        if np.isnan(self.rater):
            noise = f"interaction with raters' noise {self.interaction:.2g}"
        else:
            noise = f"interaction {self.interaction:.2g}, rater {self.rater:.2g}"
        return f"Standard deviations of a score: prompt {self.prompt:.2g}, model {self.model:.2g}, {noise}."


def components(ratings: pd.DataFrame) -> Components:
    """Method-of-moments components of variance over the prompts that all models have ratings of.

    Cell means carry the raters' variance over the number of raters, which is taken off the interaction; what is
    left below 0 by chance is 0.
    """
    cells = ratings.groupby(["prompt", "model"])["score"].agg(["mean", "var", "count"])
    mean = cells["mean"].unstack("model").dropna()
    kept = cells[cells.index.get_level_values("prompt").isin(mean.index)]
    several = kept[kept["count"] > 1]
    rater = np.nan
    if len(several):
        weight = several["count"].to_numpy(dtype=float) - 1.0
        rater = float(several["var"].to_numpy(dtype=float) @ weight / weight.sum())
    per_cell = 0.0 if np.isnan(rater) else rater * float((1.0 / kept["count"].to_numpy(dtype=float)).mean())
    table = mean.to_numpy(dtype=float)
    prompts, models = table.shape
    centred = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    free = max((prompts - 1) * (models - 1), 1)
    both = float((centred**2).sum()) / free
    prompt = float(table.mean(axis=1).var(ddof=1)) - both / models if prompts > 1 else 0.0
    model = float(table.mean(axis=0).var(ddof=1)) - both / prompts if models > 1 else 0.0
    prompt, model, interaction = (max(part, 0.0) ** 0.5 for part in (prompt, model, both - per_cell))
    return Components(prompt, model, interaction, float(np.sqrt(rater)))


def import_agiqa3k(
    path: PathLike,
    *,
    latency_from: Profile | str,
    latency_of: Mapping[str, str],
    score: Literal["align", "quality"] = "align",
    name: str = "agiqa-3k",
) -> Profile:
    """Mean opinions of 300 prompts under ten settings of six models (AGIQA-3K).

    Args:
        path: CSV with columns model (or the published name), prompt_idx, prompt, mos_align, mos_quality (0 to 5).
        latency_from: Profile (or its name or folder) that lends latencies and load times.
        latency_of: Model to take -> variant of that profile whose latency it gets; the slowest becomes the base.
        score: Which opinion: of alignment with the prompt, or of perceived quality.
        name: Of the profile.
    """
    frame = read_table(path, ("model", "prompt_idx", "prompt", f"mos_{score}"))
    rows = pd.DataFrame(
        {
            "prompt": _numbered(frame["prompt_idx"]),
            "text": frame["prompt"],
            "model": frame["model"],
            "seed": 1,
            "score": frame[f"mos_{score}"],
        }
    )
    cited = "AGIQA-3K (Li et al., TCSVT 2023, arXiv 2306.04717): mean opinion scores, 0 to 5"
    return _profile(rows, path, latency_from, latency_of, name, f"human_{score}", cited, "MIT")


def import_tifa160(
    path: PathLike, *, latency_from: Profile | str, latency_of: Mapping[str, str], name: str = "tifa-160"
) -> Profile:
    """Human ratings of 160 prompts under five models (TIFA v1.0), two raters.

    Args:
        path: CSV with columns prompt_id, prompt, model, human_scores (``"5|4"``, 1 to 5).
        latency_from, latency_of, name: As for agiqa-3k.
    """
    frame = read_table(path, ("prompt_id", "prompt", "model", "human_scores"))
    scores = [str(text).split("|") for text in frame["human_scores"]]
    seeds = [list(range(1, len(row) + 1)) for row in scores]
    long = pd.DataFrame(
        {"prompt": frame["prompt_id"].astype(str), "text": frame["prompt"], "model": frame["model"]}
    )
    columns = {"seed": pd.Series(seeds, dtype=object), "score": pd.Series(scores, dtype=object)}
    rows = long.assign(**columns).explode(["seed", "score"])
    cited = "TIFA v1.0 (Hu et al., ICCV 2023, arXiv 2303.11897): human ratings of text-image alignment, 1 to 5"
    return _profile(rows, path, latency_from, latency_of, name, "human_alignment", cited, "Apache-2.0")


def import_imagenhub(
    path: PathLike,
    *,
    latency_from: Profile | str,
    latency_of: Mapping[str, str],
    score: Literal["semantic", "perceptual"] = "semantic",
    name: str = "imagenhub",
) -> Profile:
    """Human ratings of text-to-image models by three raters (ImagenHub).

    The scale is 0, 0.5, 1. A prompt for which every rater gave the base 0 is left out: no ratio can be formed.
    The files have no prompts; the name of the sample stands for its text.

    Args:
        path: A rater's TSV as published (``uid``, then a column per model with ``[semantic, perceptual]``), or
            the folder of all raters' (``Text-To-Image_rater1.tsv``, ...).
        latency_from, latency_of, name: As for agiqa-3k.
        score: Semantic consistency or perceptual quality.
    """
    which = 0 if score == "semantic" else 1
    parts = []
    for rater, file in enumerate(files_in(Path(path), "*_rater*.tsv"), start=1):
        try:
            table = pd.read_csv(file, sep="\t", dtype=str)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read: {error}", where=str(file)) from None
        if "uid" not in table.columns:
            raise InputError("column 'uid' is missing", where=str(file))
        long = table.melt(id_vars="uid", var_name="model", value_name="pair").dropna()
        pairs = [str(pair).strip("[] ").split(",") for pair in long["pair"]]
        for pair, found in zip(pairs, long["pair"], strict=True):
            if len(pair) != 2:
                raise InputError(f"ratings look like [1,0.5], found {found!r}", where=str(file))
        uid, model = long["uid"], long["model"]
        columns = {"prompt": uid, "text": uid, "model": model, "seed": rater, "score": [p[which] for p in pairs]}
        parts.append(pd.DataFrame(columns))
    cited = f"ImagenHub (Ku et al., ICLR 2024, arXiv 2310.01596): {score} score, 0 to 1"
    rows = pd.concat(parts, ignore_index=True)
    return _profile(rows, path, latency_from, latency_of, name, f"human_{score}", cited, "MIT", drop_zero=True)


def import_aigiqa20k(
    path: PathLike, *, latency_from: Profile | str, latency_of: Mapping[str, str], name: str = "aigiqa-20k"
) -> Profile:
    """Mean opinions of 20,000 images (AIGIQA-20K). Prompts mostly differ between models: few are left.

    Args:
        path: CSV with columns model, prompt, mos (0 to 5). Images of the same prompt and model are averaged over.
        latency_from, latency_of, name: As for agiqa-3k.
    """
    frame = read_table(path, ("model", "prompt", "mos"))
    image = frame.groupby(["model", "prompt"]).cumcount() + 1
    rows = pd.DataFrame(
        {
            "prompt": [hashlib.sha256(str(text).encode()).hexdigest()[:12] for text in frame["prompt"]],
            "text": frame["prompt"],
            "model": frame["model"],
            "seed": image,
            "score": frame["mos"],
        }
    )
    cited = "AIGIQA-20K (Li et al., CVPRW 2024, arXiv 2404.03407): mean opinion scores, 0 to 5"
    return _profile(rows, path, latency_from, latency_of, name, "human_quality", cited, "see the data set")


def import_csv(
    path: PathLike,
    *,
    latency_from: Profile | str,
    latency_of: Mapping[str, str],
    prompt: str = "prompt",
    model: str = "model",
    score: str = "score",
    rater: str | None = None,
    metric: str = "human_score",
    origin: str = "",
    terms: str = "the file's own",
    name: str = "ratings",
) -> Profile:
    """Any CSV or Parquet file with a row per rating.

    Args:
        path: The file.
        latency_from, latency_of, name: As for agiqa-3k.
        prompt, model, score: Columns of the prompt's text, the model, and the score (>= 0).
        rater: Column of the rater; without it, rows of the same prompt and model are raters 1, 2, ...
        metric: What a score is.
        origin, terms: Source and licence to state.
    """
    frame = read_table(path, (prompt, model, score, *([rater] if rater else [])))
    order = frame.groupby([prompt, model]).cumcount() + 1
    rows = pd.DataFrame(
        {
            "prompt": [hashlib.sha256(str(text).encode()).hexdigest()[:12] for text in frame[prompt]],
            "text": frame[prompt].astype(str),
            "model": frame[model].astype(str),
            "seed": order if rater is None else pd.factorize(frame[rater], sort=True)[0] + 1,
            "score": frame[score],
        }
    )
    return _profile(rows, path, latency_from, latency_of, name, metric, origin or Path(path).name, terms)


def _numbered(numbers: pd.Series) -> list[str]:
    return [f"{int(number):05d}" for number in numbers]


def _profile(
    rows: pd.DataFrame,
    path: PathLike,
    latency_from: Profile | str,
    latency_of: Mapping[str, str],
    name: str,
    metric: str,
    cited: str,
    licence: str,
    *,
    drop_zero: bool = False,
) -> Profile:
    """The models that were asked for, on the prompts that have a rating under each of them."""
    where = str(path)
    source = latency_from if isinstance(latency_from, Profile) else Profile.load(latency_from)
    known = sorted({str(model) for model in rows["model"]})
    if not latency_of:
        raise InputError(f"latency_of names no model. Allowed: {', '.join(known)}.", where=where)
    for model in latency_of:
        if model not in known:
            raise InputError(f"no ratings of model {model!r}{did_you_mean(model, known)}", where=where)
    rows = rows[rows["model"].isin(list(latency_of))]
    score = pd.to_numeric(rows["score"], errors="coerce")
    if score.isna().any() or (score < 0).any():
        at = rows[score.isna() | (score < 0)].iloc[0]
        what = f"scores must be numbers >= 0, found {at['score']!r} for prompt {at['prompt']!r}"
        raise InputError(what, where=where)
    rows = rows.assign(score=score.astype(float), seed=rows["seed"].astype(int))
    order = sorted(latency_of, key=lambda model: -source.latency(source.variant_id(latency_of[model]), 1).mean_s)
    if drop_zero:
        base = rows[rows["model"] == order[0]].groupby("prompt")["score"].mean()
        rows = rows[rows["prompt"].isin(base.index[base > 0])]
    models_of = rows.groupby("prompt")["model"].nunique()
    common = models_of.index[models_of == len(order)]
    if not len(common):
        raise InputError(f"no prompt has ratings of all of {', '.join(order)}", where=where)
    rows = rows[rows["prompt"].isin(common)]
    stands = [(model, _stand(model, latency_of[model], source)) for model in order]
    description = (
        f"Human ratings of {len(common)} prompts with latencies of profile {source.name!r}, some of which may "
        f"stand in for those of other models. The seeds of the quality table are raters."
        f" {components(rows).described()}"
    )
    rated = Provenance(kind="recorded", source=cited, licence=licence)
    return build(name, description, source, stands, rows, metric=metric, rated=rated, where=where)


def _stand(model: str, lender: str, source: Profile) -> Stand:
    steps = source.variants[source.variant_id(lender)].steps
    variant = "".join(c if c.isalnum() or c in ".-" else "-" for c in model.lower())
    return Stand(variant, steps, lender, None if variant == lender else f"as {lender}, chosen by the user")
