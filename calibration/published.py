"""Two profiles from published and recorded numbers; ``argus-calibrate published --out DIR`` rebuilds them.

Neither was measured by this project. Each table's provenance says where its numbers are from and how they were
derived; the numbers themselves are in :mod:`calibration.published_numbers`. What no source gives per prompt
(quality, similarity) is generated: by :mod:`calibration.quality_model`, and by an inverse CDF.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import JsonValue

from argus_sim.importers.requests import GenTD26Requests
from argus_sim.profile import Manifest, Profile
from argus_sim.provenance import Kind, Provenance
from calibration.prompt_grammar import write_prompts
from calibration.published_numbers import (
    AC_QUALITY,
    ARTEFACT,
    ARTEFACT_LOADS,
    BASE_S,
    BATCH_GAIN,
    BK_CLIP,
    BK_SDM,
    DIFFSERVE,
    DIFFSERVE_LATENCY,
    DIFFSERVE_QUALITY,
    DISTILL_SD,
    GENTD26,
    GENTD26_LOADS_S,
    KATZ,
    SD15_QUALITY,
    SERVICE_CV,
    SIM,
    SIMILARITY_CDF,
    SPO,
    STEPS,
    TINY_PER_MINUTE,
    TINY_QUALITY,
    UNET_B,
)
from calibration.quality_model import FITTED, LadderSpec, generate

PROMPTS: Final = 4000
SEED: Final = 2511
METRIC: Final = "modelled_alignment"


def artefact_a100(
    *, text_signal: float | None = None, persistence: float | None = None, seed: int = SEED
) -> Profile:
    """`artefact-a100`: the operating points of the Argus authors' artefact.

    For holding mechanisms against the artefact's figures, not for sizing a cluster: its 1.65 from batching
    is far above what SDXL gains on an A100, and its smallest model far slower than Tiny-SD is there.

    Args:
        text_signal, persistence: Of the quality model, for sensitivity studies; None is the shipped profile.
        seed: Of prompts, quality and similarity.
    """
    sm = ("sd15", "small-sd", "tiny-sd")
    tiny_s = 60.0 / TINY_PER_MINUTE
    per_billion = (BASE_S - tiny_s) / (UNET_B["sdxl"] - UNET_B["tiny-sd"])
    single = {"sdxl": BASE_S}
    single |= {f"sdxl/ac-{k}": BASE_S * (STEPS - k) / STEPS for k in AC_QUALITY}
    single |= {model: tiny_s + per_billion * (UNET_B[model] - UNET_B["tiny-sd"]) for model in sm}
    teacher, small, tiny = BK_CLIP
    small_quality = TINY_QUALITY + (small - tiny) / (teacher - tiny) * (SD15_QUALITY - TINY_QUALITY)
    ac = LadderSpec(tuple(AC_QUALITY.values()), tuple(k / (STEPS / 2) for k in AC_QUALITY))
    names = tuple(single)
    variants = [("sdxl", "sdxl", "BASE", 0, STEPS, 0)]
    variants += [(f"sdxl/ac-{k}", "sdxl", "AC", i, STEPS, k) for i, k in enumerate(AC_QUALITY, start=1)]
    variants += [(model, model, "SM", i, STEPS, 0) for i, model in enumerate(sm, start=1)]
    latency = [
        (name, batch, side, side, None, seconds * batch / (BATCH_GAIN if batch > 1 else 1.0))
        for name, seconds in single.items()
        for side in [1024 if name.startswith("sdxl") else 512]
        for batch in (1, 2)
    ]
    prompts, complexity, is_train = _prompts(seed)
    ladders = (ac, LadderSpec((SD15_QUALITY, small_quality, TINY_QUALITY)))
    scores = generate(
        complexity, is_train, ladders, seed=seed + 1, text_signal=text_signal, persistence=persistence
    )
    plateau = "read off the plotted plateau of Clipper-HT"
    provenance = {
        "variants": [_from("published", f"{ARTEFACT}: solver_milp_oda.py (K), motiv_time.ipynb (models)")],
        "latency": [
            _from("published", f"{ARTEFACT}: solver_milp_oda.py", "sdxl", "60 over 14.29 images a minute"),
            _from("published", f"{ARTEFACT}: solver_milp_oda.py", "sdxl/ac-*", "60 over images a minute"),
            _from("published", ARTEFACT, "tiny-sd", f"60 / (326 / 8 / 1.65) images a minute, {plateau}"),
            *(
                _from("published", f"{ARTEFACT}; {DISTILL_SD}", model, "linear in U-Net parameters, Tiny to SDXL")
                for model in sm[:2]
            ),
            _from("published", ARTEFACT, "batch_size", "batch of 2: the factor 1.65 taken as a batching gain"),
            _service_cv(),
        ],
        "loads": [_from("published", f"{ARTEFACT}: motiv_time.ipynb", derived="mean of five runs as one row")],
        "prompts": [_grammar(seed)],
        "quality": [
            _from("published", f"{ARTEFACT}: solver_milp_oda.py", "sdxl/ac-*", "means only"),
            _from("published", ARTEFACT, "tiny-sd", f"mean only, {plateau}"),
            _from("published", SPO, "sd15", "mean only, 20.53 / 21.95"),
            _from(
                "published", BK_SDM, "small-sd",
                "mean only: between tiny-sd and sd15 as BK-SDM-Base's CLIP score is between Tiny's and SD 1.4's",
            ),
            _generated_quality(seed + 1),
        ],
        "similarity": [
            _from(
                "synthetic", f"inverse CDF of {ARTEFACT}: cache_logs/log_prompts_sample.csv, seed {seed + 2}",
                derived="stratified within each split; independent of quality",
            )
        ],
    }  # fmt: skip
    manifest = Manifest(
        name="artefact-a100",
        description=(
            "Operating points of the Argus authors' artefact of 2024 (approximate caching) with its model ladder."
            " Not measured: latencies are exactly linear, the gain of 1.65 from batching is the artefact's, the"
            " smaller models' speed is read off a figure, and per-prompt quality is generated."
        ),
        gpu="A100-class (the artefact names none; 4.2 s for SDXL at 50 steps)",
        resolution=(1024, 1024),
        seeds=(seed + 1,),
        base="sdxl",
        metric=METRIC,
        service_distribution="lognormal",
        provenance={table: tuple(parts) for table, parts in provenance.items()},
        generator=_generator(seed, text_signal, persistence),
    )
    loads = [(model, "disk", seconds, size) for model, (seconds, size) in ARTEFACT_LOADS.items()]
    return Profile.from_tables(
        manifest,
        {
            "variants": _variants(variants),
            "latency": _latency(latency),
            "loads": pd.DataFrame(loads, columns=["model", "source", "seconds", "bytes"]),
            "prompts": prompts,
            "quality": _quality(prompts, names, scores, seed + 1),
            "similarity": _similarity(prompts, is_train, seed + 2),
        },
    )


def diffserve_a100(
    *, text_signal: float | None = None, persistence: float | None = None, seed: int = SEED
) -> Profile:
    """`diffserve-a100`: five models with the batch tables that DiffServe's authors measured on an A100-80G.

    Levels follow latency. By mean quality `sd15` stands under the faster `sdxl-lightning`: a model that is
    dominated on average, as real model zoos have them.

    Args:
        text_signal, persistence: Of the quality model, for sensitivity studies; None is the shipped profile.
        seed: Of prompts and quality.
    """
    names = tuple(DIFFSERVE_LATENCY)
    variants = [
        (name, name, "SM" if level else "BASE", level, DIFFSERVE_LATENCY[name][0], 0)
        for level, name in enumerate(names)
    ]
    latency = [
        (name, batch, side, side, None, seconds)
        for name, (_, side, table) in DIFFSERVE_LATENCY.items()
        for batch, seconds in table.items()
    ]
    loads = [(name, "disk", seconds, None) for name in names for seconds in GENTD26_LOADS_S]
    prompts, complexity, is_train = _prompts(seed)
    ladder = LadderSpec(tuple(DIFFSERVE_QUALITY[name] for name in names[1:]))
    scores = generate(
        complexity, is_train, (ladder,), seed=seed + 1, text_signal=text_signal, persistence=persistence
    )
    one_step = "one-step SDXL-Turbo over SDXL, .228 / .229"
    provenance = {
        "variants": [_from("published", f"{DIFFSERVE}: profiling/*.csv")],
        "latency": [
            _from("published", f"{DIFFSERVE}: profiling/*.csv (measured by its authors, A100-80G)"),
            _service_cv(),
        ],
        "loads": [
            Provenance(
                kind="recorded",
                source=f"{GENTD26}: basemodel_update_latency",
                derived="99 quantiles of 7,531 loads of a production service's base models, the same for every"
                " model here; its GPUs and storage are not DiffServe's",
                licence=GenTD26Requests.licence,
            )
        ],
        "prompts": [_grammar(seed)],
        "quality": [
            _from("published", SPO, "sd15", "mean only, 20.53 / 21.95 (SIM's table gives .217 / .229 = .948)"),
            _from(
                "published", SIM, "sdxl-lightning",
                "mean only: 2 steps midway between 1 step (.223) and 4 steps (.229), over SDXL's .229",
            ),
            _from(
                "published", f"{SPO}; {SIM}", "sd-turbo",
                f"stand-in, mean only: SD 1.5's .935 (for SD 2.1) times {one_step}; no score of SD-Turbo itself",
            ),
            _from(
                "published", f"{ARTEFACT}; {SIM}", "sdxs",
                f"stand-in, mean only: Tiny-SD's .898 (a U-Net of the same size) times {one_step}",
            ),
            _generated_quality(seed + 1),
        ],
    }  # fmt: skip
    manifest = Manifest(
        name="diffserve-a100",
        description=(
            "SDXL and four faster models with batch latencies measured by DiffServe's authors on an A100-80G."
            " Load times are recorded ones of a production service; per-prompt quality is generated around mean"
            " ratios of PickScores, two of which are stand-ins."
        ),
        gpu="NVIDIA A100 80GB",
        resolution=(1024, 1024),
        seeds=(seed + 1,),
        base="sdxl",
        metric=METRIC,
        service_distribution="lognormal",
        provenance={table: tuple(parts) for table, parts in provenance.items()},
        generator=_generator(seed, text_signal, persistence),
    )
    return Profile.from_tables(
        manifest,
        {
            "variants": _variants(variants),
            "latency": _latency(latency),
            "loads": pd.DataFrame(loads, columns=["model", "source", "seconds", "bytes"]),
            "prompts": prompts,
            "quality": _quality(prompts, names, scores, seed + 1),
        },
    )


#: name -> builder of each shipped profile that is made of published numbers
PUBLISHED: Final[dict[str, Callable[[], Profile]]] = {
    "artefact-a100": artefact_a100,
    "diffserve-a100": diffserve_a100,
}


def write_published(out: str | Path) -> list[Path]:
    """Build every profile of :data:`PUBLISHED` into folders of `out`; returns the folders."""
    folders = []
    for name, build in PUBLISHED.items():
        folder = Path(out) / name
        build().save(folder)
        folders.append(folder)
    return folders


# ---- tables


def _variants(rows: Sequence[tuple[str, str, str, int, int, int]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["variant", "model", "strategy", "level", "steps", "skipped_steps"])


def _latency(rows: Sequence[tuple[str, int, int, int, None, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["variant", "batch_size", "width", "height", "samples", "mean_s"])
    # Microseconds: far below any source's precision, and 3.78 is written 3.78.
    frame["mean_s"] = frame["mean_s"].round(6)
    frame["std_s"] = (SERVICE_CV * frame["mean_s"]).round(6)
    return frame


def _prompts(seed: int) -> tuple[pd.DataFrame, list[float], npt.NDArray[np.bool_]]:
    written = write_prompts(PROMPTS, seed)
    index = np.arange(PROMPTS)
    # The grammar's classes cycle with period 6; whole cycles alternate, so both splits have the same mix.
    is_train = index // 6 % 2 == 0
    frame = pd.DataFrame(
        {
            "prompt": [f"p{i:04d}" for i in index],
            "text": [prompt.text for prompt in written],
            "split": np.where(is_train, "train", "test").astype(object),
        }
    )
    return frame, [float(prompt.complexity) for prompt in written], is_train


def _quality(
    prompts: pd.DataFrame, variants: Sequence[str], scores: npt.NDArray[np.float64], seed: int
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt": np.repeat(prompts["prompt"].to_numpy(dtype=object), len(variants)),
            "variant": np.tile(np.array(variants, dtype=object), len(prompts)),
            "metric": METRIC,
            "score": scores.ravel(),
            "seed": seed,
        }
    )


def _similarity(prompts: pd.DataFrame, is_train: npt.NDArray[np.bool_], seed: int) -> pd.DataFrame:
    rng = np.random.Generator(np.random.PCG64(seed))
    share, value = np.array(SIMILARITY_CDF).T
    similarity = np.empty(len(prompts))
    for rows in (is_train, ~is_train):
        count = int(rows.sum())
        # One draw from each of `count` equal strata, so that shares come out right but for rounding.
        strata = (np.argsort(rng.random(count)) + 0.5) / count
        similarity[rows] = np.round(np.interp(strata, share, value), 6)
    return pd.DataFrame({"prompt": prompts["prompt"], "neighbour": None, "similarity": similarity})


# ---- provenance


def _from(kind: Kind, source: str, covers: str = "*", derived: str | None = None) -> Provenance:
    return Provenance(kind=kind, source=source, covers=covers, derived=derived)


def _service_cv() -> Provenance:
    how = f"{SERVICE_CV} of the mean: SDXL on another GPU, 87 requests, first ones left out"
    return Provenance(kind="recorded", source=KATZ, covers="std_s", derived=how, licence="Apache-2.0")


def _grammar(seed: int) -> Provenance:
    return _from("synthetic", f"calibration.prompt_grammar, seed {seed}")


def _generated_quality(seed: int) -> Provenance:
    how = "means as above; spread over prompts fitted to GenAI-Bench, AGIQA-3K and AIGCIQA2023 ratings"
    return _from("synthetic", f"calibration.quality_model, seed {seed}", derived=how)


def _generator(seed: int, text_signal: float | None, persistence: float | None) -> dict[str, JsonValue]:
    return {
        "command": "argus-calibrate published",
        "seed": seed,
        "prompts": PROMPTS,
        "text_signal": FITTED.text_share_of_score if text_signal is None else text_signal,
        "persistence": FITTED.persistence if persistence is None else persistence,
        "quality_parameters": {name: float(value) for name, value in asdict(FITTED).items()},
    }
