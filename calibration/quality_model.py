"""Per-prompt quality where only means are published: a generator whose spread is fitted to recorded ratings.

No public data set scores the same prompts under each of a serving system's variants; what is published are
means (the artefact's A_K, a ratio of PickScores). How much prompts *differ* in what an approximation costs
them decides whether a prompt-aware policy can win, so that spread is taken from human ratings, not made up.

**Model.** A prompt scores ``S_p`` on the base variant and ``S_p * r(p, l)`` on variant l, with

    r(p, l) = clip(A_l + shift_l + spread_l * z(p, l), 1/5, 5)

``A_l`` is the given mean; ``shift_l`` makes the mean over the prompts of each split exactly ``A_l``; ``z`` is
standard normal, correlated over variants; the bounds are those of a ratio of two ratings from 1 to 5.

- *Peers* (ladders of other models: SM): ``spread_l`` grows linearly with the mean loss ``1 - A_l``; two
  peers' deviations have correlation rho, because both are measured against the same base.
- *Walk* (ladders of one model approximated more and more: AC, STEPS): deviations are those of a random walk
  along the ladder. At depth t in (0, 1] (t = 1: half of the steps) ``spread = walk_spread * sqrt(t)``; the
  correlation of two depths is ``sqrt(min / max)``, and that of a depth with a peer is ``rho * sqrt(t)``.

**What was fitted** (:func:`fit_from_recorded`, :data:`FITTED`), all on human text-image alignment:

- GenAI-Bench (Li et al., arXiv 2406.13743; 527 prompts, SDXL base, SDXL-Turbo, SD 2.1, three raters):
  noise-free covariances of the three models from ratings of *different* raters, so that rater noise and a
  rater's own opinion of a prompt drop out (method of moments). They give the spread of peers at two mean
  losses, and rho.
- AGIQA-3K (Li et al., arXiv 2306.04717; 300 prompts, SD 1.5 with its normal and with fewer steps): variance
  of the difference of the mean opinion scores less the rating noise ``std^2 / 21`` of either (21 ratings an
  image, from the paper; the file has their standard deviation and not the ratings). The file does not say
  how many steps "fewer" are; it is taken as t = 1.
- AIGCIQA2023 (Wang et al., arXiv 2307.00211; 100 prompts x 6 models x 4 images): both sets above have one
  image per prompt and model, so their spread contains the luck of a seed, while quality here means the
  *expected* score over seeds. Of what is left when prompts' and models' means are taken out, the share that
  persists over the four images is ``persistence``; spreads are multiplied by its square root. It is a low
  estimate, since rating noise counts as luck, and the six models are older than those simulated.

**How much of it can a text predict?** Cross-validated ridge regression on hashed word n-grams and length, on
GenAI-Bench, explains 1 % of the noise-free difference SDXL-Turbo - SDXL (that is, about nothing), though a
fifth of the noise-free score of SDXL itself. With 527 prompts and one image each this does not show that the
difference is unpredictable, but nothing recorded shows that it is predictable: *whatever a prompt-aware
policy gains on a synthetic profile rests on* ``text_signal``, *an assumption of this project*. Its default
is the share that text explains of the persistent part of SDXL's own score, i.e. the assumption that a text
tells as much about differences as about scores. Sweep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri
from scipy.stats import rankdata

from argus_sim.errors import InputError

Floats = npt.NDArray[np.float64]

#: A rating is 1..5, so a ratio of two is in here.
RATIO_BOUNDS: Final = (1.0 / 5.0, 5.0)

#: Ratings per image and scale of AGIQA-3K (arXiv 2306.04717).
AGIQA_RATERS: Final = 21


@dataclass(frozen=True, slots=True)
class QualityParameters:
    """What the generator knows of prompts. Spreads are of single images, relative to the base's mean score.

    Attributes:
        score_mean: Mean rating of the base (1..5).
        score_std: Its standard deviation over prompts, free of rater noise and of the luck of a seed.
        peer_spread: Standard deviation over prompts of a peer's ratio to the base at no mean loss.
        peer_spread_slope: How much that grows per unit of mean loss.
        peer_correlation: Correlation of two peers' deviations.
        walk_spread: The same standard deviation for one model with half of its steps.
        persistence: Share of a deviation's variance that is the prompt's and not the seed's.
        text_share_of_difference: Share of the noise-free variance of SDXL-Turbo - SDXL that text explains.
        text_share_of_score: Share of the persistent variance of the base's score that text explains.
        prompt_variance, interaction_variance, rater_variance: Components of a rating, rating units squared.
    """

    score_mean: float
    score_std: float
    peer_spread: float
    peer_spread_slope: float
    peer_correlation: float
    walk_spread: float
    persistence: float
    text_share_of_difference: float
    text_share_of_score: float
    prompt_variance: float
    interaction_variance: float
    rater_variance: float


#: :func:`fit_from_recorded` on the three data sets, rounded; a test refits it where they are at hand.
FITTED: Final = QualityParameters(
    score_mean=3.109,
    score_std=0.870,
    peer_spread=0.283,
    peer_spread_slope=0.667,
    peer_correlation=0.485,
    walk_spread=0.220,
    persistence=0.201,
    text_share_of_difference=0.008,
    text_share_of_score=0.300,
    prompt_variance=0.649,
    interaction_variance=0.485,
    rater_variance=0.465,
)


@dataclass(frozen=True, slots=True)
class LadderSpec:
    """Levels 1, 2, ... of one ladder.

    Attributes:
        relative_quality: Mean of a level's score over the base's.
        depth: For a ladder of one model approximated more and more: how far along each level is, 1 being
            half of the steps. None for a ladder of other models.
    """

    relative_quality: tuple[float, ...]
    depth: tuple[float, ...] | None = None


# ---- generation


def generate(
    complexity: Sequence[float],
    is_train: npt.NDArray[np.bool_],
    ladders: Sequence[LadderSpec],
    *,
    seed: int,
    parameters: QualityParameters = FITTED,
    text_signal: float | None = None,
    persistence: float | None = None,
) -> Floats:
    """Draw scores.

    Args:
        complexity: Of each of P prompts; only its order matters. Complex prompts lose more.
        is_train: Which prompts are of the train split; means are exact within each split.
        ladders: The levels to generate, without the base.
        seed: Of the generator.
        parameters: Fitted to recorded ratings.
        text_signal: Share in [0, 1] of the variance of a prompt's deviation that `complexity` explains; None
            is the documented default.
        persistence: Overrides that of `parameters`; 1 takes single images' spread for the prompts'.

    Returns:
        float64[P, 1 + levels]: scores of the base, then of the ladders' levels in order, to six decimals.
    """
    signal = parameters.text_share_of_score if text_signal is None else text_signal
    share = parameters.persistence if persistence is None else persistence
    for name, value in (("text_signal", signal), ("persistence", share)):
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{name} must be in [0, 1], found {value}")
    mean = np.array([a for ladder in ladders for a in ladder.relative_quality])
    spread, correlation = _moments(ladders, parameters)
    count = len(is_train)
    rng = np.random.Generator(np.random.PCG64(seed))
    # Inverse transform of raw uniforms: the part of a generator that stays stable between releases.
    noise = ndtri(np.clip(rng.random((count, 1 + len(mean))), 1e-12, 1.0 - 1e-12))
    deviation = noise[:, 1:] @ _residual_factor(correlation, signal).T
    deviation += np.sqrt(signal) * -_normal_scores(np.asarray(complexity, dtype=np.float64))[:, None]
    ratio = np.empty_like(deviation)
    for rows in (is_train, ~is_train):
        if rows.any():
            ratio[rows] = _with_mean(mean, np.sqrt(share) * spread * deviation[rows])
    base = np.clip(parameters.score_mean + parameters.score_std * noise[:, :1], 1.0, 5.0)
    return np.asarray(np.round(np.hstack([base, base * ratio]), 6), dtype=np.float64)


def _normal_scores(values: Floats) -> Floats:
    scores = np.asarray(ndtri((rankdata(values) - 0.5) / len(values)), dtype=np.float64)
    scale = scores.std()
    return (scores - scores.mean()) / scale if scale > 0 else np.zeros_like(scores)


def _moments(ladders: Sequence[LadderSpec], p: QualityParameters) -> tuple[Floats, Floats]:
    """Spread of each level (single images) and the correlation of all levels of all ladders."""
    spread: list[float] = []
    depth: list[float | None] = []
    for ladder in ladders:
        for level, mean in enumerate(ladder.relative_quality):
            t = None if ladder.depth is None else ladder.depth[level]
            depth.append(t)
            peer = p.peer_spread + p.peer_spread_slope * max(1.0 - mean, 0.0)
            spread.append(peer if t is None else p.walk_spread * float(np.sqrt(t)))
    n = len(depth)
    correlation = np.eye(n)
    for i in range(n):
        for j in range(i):
            a, b = depth[i], depth[j]
            if a is not None and b is not None:
                value = float(np.sqrt(min(a, b) / max(a, b)))
            else:
                # Walks of the same depth in two ladders would coincide; peers never do.
                value = p.peer_correlation * float(np.sqrt((a or 1.0) * (b or 1.0)))
            correlation[i, j] = correlation[j, i] = value
    return np.array(spread), correlation


def _residual_factor(correlation: Floats, signal: float) -> Floats:
    """Factor of the correlation that is left when a common cause explains `signal` of every variance.

    A strong signal leaves no matrix that gives the fitted correlation: then it is the nearest that exists.
    """
    rest = correlation - signal
    values, vectors = np.linalg.eigh(rest)
    if values[0] < 1e-9:
        rest = (vectors * np.maximum(values, 0.0)) @ vectors.T
        scale = np.sqrt((1.0 - signal) / np.maximum(np.diag(rest), 1e-12))
        rest = rest * np.outer(scale, scale) + 1e-9 * np.eye(len(rest))
    return np.asarray(np.linalg.cholesky(rest), dtype=np.float64)


def _with_mean(mean: Floats, deviation: Floats) -> Floats:
    """Clipped ``mean + shift + deviation`` with the shift that makes column means exact."""
    shift: Floats = -deviation.mean(axis=0)
    for _ in range(100):
        ratio = np.clip(mean + shift + deviation, *RATIO_BOUNDS)
        error = mean - ratio.mean(axis=0)
        if np.abs(error).max() < 1e-13:
            break
        shift += error
    return np.asarray(ratio, dtype=np.float64)


# ---- fit


def fit_from_recorded(
    genai_csv: str | Path, agiqa_csv: str | Path, aigciqa_csv: str | Path | None = None
) -> QualityParameters:
    """Fit all parameters to recorded ratings, as the module's docstring says.

    Args:
        genai_csv: GenAI-Bench: columns prompt_id, prompt, model, human_scores (``"4|5|3"``).
        agiqa_csv: AGIQA-3K: columns model, prompt_idx, mos_align, std_align.
        aigciqa_csv: AIGCIQA2023: columns model, image_name (``"<prompt>-<image>.png"``), mos_correspondence.
            None keeps the committed persistence.

    Raises:
        InputError: A file lacks a column or a model.
    """
    persistence = FITTED.persistence if aigciqa_csv is None else _fit_persistence(aigciqa_csv)
    texts, ratings = genai_ratings(genai_csv, ("SDXL_Base", "SDXL_2_1", "SDXL_Turbo"))
    cov = _between_raters(ratings)
    mean = ratings.mean(axis=(1, 2))
    off = cov[np.triu_indices(3, k=1)].mean()
    prompt, interaction = float(off), float(np.diag(cov).mean() - off)

    # Variances and covariance of the other models' differences to the base, relative to its mean score.
    loss = 1.0 - mean[1:] / mean[0]
    difference = cov[1:, 1:] - cov[1:, [0]] - cov[[0], 1:] + cov[0, 0]
    small, turbo = np.sqrt(np.diag(difference)) / mean[0]
    slope = float((small - turbo) / (loss[0] - loss[1]))
    noise = ratings.var(axis=2, ddof=1).mean(axis=1)

    base_interaction = cov[0, 0] - prompt
    persistent_share = float(prompt + persistence * base_interaction) / float(cov[0, 0])
    gap = ratings[2].mean(axis=1) - ratings[0].mean(axis=1)
    return QualityParameters(
        score_mean=float(mean[0]),
        score_std=float(np.sqrt(persistent_share * cov[0, 0])),
        peer_spread=float(turbo - slope * loss[1]),
        peer_spread_slope=slope,
        peer_correlation=float(difference[0, 1] / np.sqrt(difference[0, 0] * difference[1, 1])),
        walk_spread=_fit_walk(agiqa_csv),
        persistence=persistence,
        text_share_of_difference=explained_by_text(texts, gap, float(difference[1, 1])),
        text_share_of_score=explained_by_text(texts, ratings[0].mean(axis=1), float(cov[0, 0]))
        / persistent_share,
        prompt_variance=prompt,
        interaction_variance=interaction,
        rater_variance=float(noise.mean()),
    )


def genai_ratings(path: str | Path, models: Sequence[str]) -> tuple[list[str], Floats]:
    """Prompts and ratings float64[model, prompt, rater] of GenAI-Bench, ordered by the prompt's identifier."""
    frame = _read(path, ("prompt_id", "prompt", "model", "human_scores"), models)
    rows = [frame.loc[frame["model"] == model].sort_values("prompt_id") for model in models]
    ratings = np.array([[[float(x) for x in s.split("|")] for s in part["human_scores"]] for part in rows])
    return rows[0]["prompt"].tolist(), ratings


def explained_by_text(texts: Sequence[str], values: Floats, noise_free_variance: float) -> float:
    """Share of the noise-free variance of `values` that a text predicts on held-out prompts, at least 0.

    Ridge regression on hashed word 1- and 2-grams and three measures of length; out-of-fold predictions of
    ten folds, five times over. Rater noise cannot be predicted: the explained part is divided by what is
    free of it.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold, cross_val_predict

    words = HashingVectorizer(ngram_range=(1, 2), n_features=2**12, alternate_sign=False).transform(texts)
    length = np.array([[len(t), len(t.split()), t.count(",")] for t in texts], dtype=np.float64)
    length = (length - length.mean(axis=0)) / np.maximum(length.std(axis=0), 1e-12)
    # 0.3: a unit-norm text and three standardised lengths then carry weights of one order.
    features = hstack([words, csr_matrix(0.3 * length)]).tocsr()
    explained = []
    for repeat in range(5):
        folds = KFold(n_splits=10, shuffle=True, random_state=repeat)
        predicted = cross_val_predict(Ridge(alpha=3.0), features, values, cv=folds)
        explained.append(np.var(values) - np.mean((values - predicted) ** 2))
    return max(float(np.mean(explained)) / noise_free_variance, 0.0)


def _between_raters(ratings: Floats) -> Floats:
    """Covariance over prompts of the models' noise-free scores: only different raters are compared."""
    models, prompts, raters = ratings.shape
    centred = ratings - ratings.mean(axis=1, keepdims=True)
    out = np.zeros((models, models))
    for a in range(raters):
        for b in range(raters):
            if a != b:
                out += centred[:, :, a] @ centred[:, :, b].T / (prompts - 1)
    return np.asarray(out / (raters * (raters - 1)), dtype=np.float64)


def _fit_walk(path: str | Path) -> float:
    models = ("sd1.5_normal", "sd1.5_lowstep")
    frame = _read(path, ("model", "prompt_idx", "mos_align", "std_align"), models)
    mos = frame.pivot(index="prompt_idx", columns="model", values="mos_align").dropna()
    std = frame.pivot(index="prompt_idx", columns="model", values="std_align").dropna()
    noise = sum(float((std[model] ** 2).mean()) / AGIQA_RATERS for model in models)
    variance = float((mos[models[1]] - mos[models[0]]).var()) - noise
    return float(np.sqrt(max(variance, 0.0))) / float(mos[models[0]].mean())


def _fit_persistence(path: str | Path) -> float:
    frame = _read(path, ("model", "image_name", "mos_correspondence"), ())
    parts = frame["image_name"].str.extract(r"^(?P<prompt>\d+)-(?P<image>\d+)")
    frame = frame.assign(prompt=parts["prompt"], image=parts["image"])
    cells = frame.groupby(["prompt", "model"])["mos_correspondence"]
    within = float(cells.var(ddof=1).mean())
    mean = cells.mean().unstack("model").to_numpy()
    prompts, models = mean.shape
    rest = mean - mean.mean(axis=0) - mean.mean(axis=1, keepdims=True) + mean.mean()
    square = float((rest**2).sum()) / ((prompts - 1) * (models - 1))
    interaction = max(square - within / float(cells.size().mean()), 0.0)
    return interaction / (interaction + within)


def _read(path: str | Path, columns: Sequence[str], models: Sequence[str]) -> pd.DataFrame:
    frame = pd.read_csv(path, dtype={"prompt_id": str})
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(f"column {missing[0]!r} is missing; found {', '.join(frame.columns)}", where=str(path))
    absent = sorted(set(models) - set(frame["model"]))
    if absent:
        raise InputError(f"no ratings of model {absent[0]!r}", where=str(path))
    return frame.loc[frame["model"].isin(models)] if models else frame
