"""The affinity predictor: from a prompt's text to its quality at every level, and how far to trust it.

Ridge regression from a sentence embedding to relative quality, one output per variant; learned from the profile's
training prompts, judged on its test prompts. What it says about a level is turned into a probability that the
level is good enough (by the spread of its errors on training prompts left out in turn), and the reliability
diagram shows whether those probabilities can be taken at their word.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy.special import ndtr

from argus_sim.errors import InputError
from argus_sim.files import write_atomically
from argus_sim.profile import Profile
from argus_sim.report.plot_style import head, save, styled
from calibration.text import check_clip, embed
from calibration.zoo import ZOOS

Floats = npt.NDArray[np.float64]

_FOLDS: Final = 5
_PENALTIES: Final = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4)
_BINS: Final = 10


@dataclass(frozen=True)
class Predictor:
    """A fitted predictor: ``quality(texts) = features(texts) @ weights + mean``.

    Attributes:
        embedding: What the features are made with.
        variants: Names, in the order of the outputs.
        mean: float64[V], the intercept.
        weights: float64[D + 1, V]; the last feature is the number of words.
        words: Mean and spread of the number of words.
        error: float64[V], standard deviation of the errors on training prompts left out in turn.
        penalty: Of the ridge, chosen by those errors.
    """

    embedding: str
    variants: tuple[str, ...]
    mean: Floats
    weights: Floats
    words: tuple[float, float]
    error: Floats
    penalty: float

    def quality(self, texts: list[str]) -> Floats:
        """float64[N, V]: expected relative quality."""
        return _features(texts, self.embedding, self.words) @ self.weights + self.mean

    def save(self, path: Path) -> None:
        """One ``.npz`` file, whole or not at all; no code is stored in it."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            embedding=np.array(self.embedding.partition("=")[0]),
            variants=np.array(self.variants),
            mean=self.mean,
            weights=self.weights.astype(np.float32),
            words=np.array(self.words),
            error=self.error,
            penalty=np.array(self.penalty),
        )
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, *, embedding: str | None = None) -> Predictor:
        """Read what :meth:`save` wrote; `embedding` names a MiniLM's folder where it is not the usual one."""
        try:
            with np.load(path, allow_pickle=False) as f:
                return cls(
                    embedding or str(f["embedding"]),
                    tuple(map(str, f["variants"])),
                    f["mean"],
                    f["weights"].astype(np.float64),
                    (float(f["words"][0]), float(f["words"][1])),
                    f["error"],
                    float(f["penalty"]),
                )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"not a predictor's file: {error}", where=str(path)) from None


@dataclass(frozen=True)
class Judgement:
    """How good a predictor is on one ladder, on prompts it has not seen.

    Attributes:
        strategy: The ladder.
        prompts: Number of test prompts.
        accuracy: Share of prompts whose affinity it names exactly.
        within_one: Share named exactly or one level off.
        too_far: Share it would approximate further than the tolerance allows.
        regret: Mean relative quality lost against a perfect choice of the affinity, over the prompts it sends too
            far.
        baseline_accuracy, baseline_regret: The same of the best single level for all prompts.
        explained: Share of the variance of quality between prompts that the text explains (R^2; 0 is none).
        speed_up: Mean latency of the base over that of its choices, and `perfect_speed_up` over the perfect ones.
        calibration_error: Mean distance of stated probability and observed frequency, by bins.
    """

    strategy: str
    prompts: int
    accuracy: float
    within_one: float
    too_far: float
    regret: float
    baseline_accuracy: float
    baseline_regret: float
    explained: float
    speed_up: float
    perfect_speed_up: float
    calibration_error: float


@dataclass(frozen=True)
class Fit:
    """A predictor, its judgement on each ladder, and (probability, came true) pairs for the diagram."""

    predictor: Predictor
    judgements: tuple[Judgement, ...]
    stated: Floats
    true: npt.NDArray[np.bool_]


def fit(profile: Profile, *, embedding: str = "ngrams", tolerance: float = 0.05) -> Fit:
    """Train on the profile's training prompts and judge on its test prompts.

    Args:
        profile: One with quality.
        embedding: As :func:`calibration.text.embedder` knows it; ``clip`` for the shapes zoo only.
        tolerance: Relative quality that may be lost against the best level of the ladder.
    """
    if not 0.0 <= tolerance < 1.0:
        raise InputError(f"must be in [0, 1), not {tolerance}", where="--tolerance")
    check_clip(embedding, ours=set(profile.models) <= {entry.name for entry in ZOOS["shapes"]})
    quality = profile.relative_quality()
    whole = np.isfinite(quality).all(axis=1)
    train = np.flatnonzero(profile.is_train & whole)
    test = np.flatnonzero(~profile.is_train & whole)
    if len(train) < 2 * _FOLDS or len(test) < 5:
        raise InputError(
            f"profile {profile.name!r} has {len(train)} training and {len(test)} test prompts with all scores:"
            f" at least {2 * _FOLDS} and 5 are needed"
        )
    texts = list(profile.prompt_texts)
    counts = np.array([len(texts[i].split()) for i in train], dtype=np.float64)
    words = (float(counts.mean()), float(counts.std()) or 1.0)
    x = _features(texts, embedding, words)
    predictor = _ridge(x[train], quality[train], embedding, tuple(v.name for v in profile.variants), words)
    predicted = x[test] @ predictor.weights + predictor.mean
    judgements, stated, true = [], [], []
    for strategy in profile.strategies:
        ladder = list(profile.ladder(strategy))
        latency = np.array([profile.latency(v, 1).mean_s for v in ladder])
        observed, guess, known = quality[test][:, ladder], predicted[:, ladder], quality[train][:, ladder]
        p, t = _reliability(guess, predictor.error[ladder], observed, tolerance)
        stated.append(p)
        true.append(t)
        judgements.append(_judge(strategy, observed, guess, known, latency, tolerance, p, t))
    return Fit(predictor, tuple(judgements), np.concatenate(stated), np.concatenate(true))


def _features(texts: list[str], embedding: str, words: tuple[float, float]) -> Floats:
    # Normalised embeddings forget how long a prompt is, and long ones ask for more that can go wrong.
    counts = (np.array([len(text.split()) for text in texts], dtype=np.float64) - words[0]) / words[1]
    return np.hstack([embed(texts, embedding), 0.3 * counts[:, None]])


def _ridge(
    x: Floats, y: Floats, embedding: str, variants: tuple[str, ...], words: tuple[float, float]
) -> Predictor:
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(x))
    left_out = np.empty((len(_PENALTIES), *y.shape))
    for theirs in np.array_split(order, _FOLDS):
        ours = np.setdiff1d(order, theirs)
        for row, (weights, shift) in zip(left_out, _ridge_path(x[ours], y[ours], _PENALTIES), strict=True):
            row[theirs] = x[theirs] @ weights + shift
    best = int(((left_out - y) ** 2).mean(axis=(1, 2)).argmin())
    ((weights, shift),) = _ridge_path(x, y, _PENALTIES[best : best + 1])
    spread = np.maximum((left_out[best] - y).std(axis=0), 1e-6)
    return Predictor(embedding, variants, shift, weights, words, spread, _PENALTIES[best])


def _ridge_path(x: Floats, y: Floats, penalties: Sequence[float]) -> list[tuple[Floats, Floats]]:
    """``(weights, intercept)`` for each penalty, from one decomposition."""
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    u, s, vt = np.linalg.svd(x - x_mean, full_matrices=False)
    turned = u.T @ (y - y_mean)
    out = []
    for penalty in penalties:
        weights = vt.T @ ((s / (s**2 + penalty))[:, None] * turned)
        out.append((weights, y_mean - x_mean @ weights))
    return out


def affinity(quality: Floats, tolerance: float) -> npt.NDArray[np.int64]:
    """int64[N]: the most approximate level whose quality is within the tolerance of the ladder's best.

    >>> affinity(np.array([[1.0, 0.97, 0.90], [0.9, 1.0, 0.99]]), 0.05).tolist()
    [1, 2]
    """
    good = quality >= (1.0 - tolerance) * quality.max(axis=1, keepdims=True)
    return np.asarray(quality.shape[1] - 1 - np.argmax(good[:, ::-1], axis=1))


def _reliability(
    guess: Floats, error: Floats, observed: Floats, tolerance: float
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Probability that a level is good enough as the predictor sees it, and whether it was."""
    margin = guess - (1.0 - tolerance) * guess.max(axis=1, keepdims=True)
    probability = ndtr(margin / error)
    true = observed >= (1.0 - tolerance) * observed.max(axis=1, keepdims=True)
    return probability[:, 1:].ravel(), true[:, 1:].ravel()


def _judge(
    strategy: str,
    observed: Floats,
    guess: Floats,
    known: Floats,
    latency: Floats,
    tolerance: float,
    stated: Floats,
    true: npt.NDArray[np.bool_],
) -> Judgement:
    rows = np.arange(len(observed))
    perfect, chosen = affinity(observed, tolerance), affinity(guess, tolerance)
    levels = observed.shape[1]
    constant = int(np.bincount(affinity(known, tolerance), minlength=levels).argmax())

    def regret(choice: npt.NDArray[np.int64]) -> float:
        return float(
            np.maximum(observed[rows, perfect] - observed[rows, choice], 0.0)[choice > perfect].sum() / len(rows)
        )

    total = ((observed - observed.mean(axis=0)) ** 2).sum()
    left = ((observed - guess) ** 2).sum()
    return Judgement(
        strategy=strategy,
        prompts=len(observed),
        accuracy=float((chosen == perfect).mean()),
        within_one=float((abs(chosen - perfect) <= 1).mean()),
        too_far=float((chosen > perfect).mean()),
        regret=regret(chosen),
        baseline_accuracy=float((perfect == constant).mean()),
        baseline_regret=regret(np.full(len(observed), constant)),
        explained=float(1.0 - left / total) if total > 0 else 0.0,
        speed_up=float(latency[0] / latency[chosen].mean()),
        perfect_speed_up=float(latency[0] / latency[perfect].mean()),
        calibration_error=_calibration_error(stated, true),
    )


def reliability_bins(stated: Floats, true: npt.NDArray[np.bool_]) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """``(stated, observed, count)`` per bin of probability that holds anything."""
    which = np.minimum((stated * _BINS).astype(np.int64), _BINS - 1)
    count = np.bincount(which, minlength=_BINS)
    there = count > 0
    mean = np.bincount(which, stated, _BINS)[there] / count[there]
    share = np.bincount(which, true.astype(np.float64), _BINS)[there] / count[there]
    return mean, share, count[there]


def _calibration_error(stated: Floats, true: npt.NDArray[np.bool_]) -> float:
    mean, share, count = reliability_bins(stated, true)
    return float((abs(mean - share) * count).sum() / count.sum())


@styled
def reliability_diagram(result: Fit, title: str) -> Figure:
    """Stated probability against observed frequency; the area of a point is the number of cases."""
    mean, share, count = reliability_bins(result.stated, result.true)
    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    ax = figure.add_subplot()
    ax.plot([0, 1], [0, 1], color="#8C8C8C", linestyle=(0, (4, 1.5)), linewidth=1.0, label="as good as its word")
    ax.plot(mean, share, color="#0072B2", linewidth=1.2)
    ax.scatter(mean, share, s=14 + 160 * count / count.max(), color="#0072B2", alpha=0.85, label="test prompts")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xlabel("stated probability that a level is good enough")
    ax.set_ylabel("share of cases in which it was")
    ax.legend(loc="upper left")
    head(figure, title, f"{len(result.stated)} cases: test prompts x levels below the base, all ladders")
    return figure


def as_json(result: Fit) -> dict[str, Any]:
    """What the command prints."""
    mean, share, count = reliability_bins(result.stated, result.true)
    return {
        "embedding": result.predictor.embedding.partition("=")[0],
        "penalty": result.predictor.penalty,
        "ladders": [asdict(judgement) for judgement in result.judgements],
        "reliability": {"stated": mean.tolist(), "observed": share.tolist(), "cases": count.tolist()},
    }


def write_fit(result: Fit, folder: Path, name: str) -> list[Path]:
    """``predictor.npz``, ``fit.json`` and ``reliability.png|svg``."""
    predictor, table = folder / "predictor.npz", folder / "fit.json"
    result.predictor.save(predictor)
    write_atomically(table, (json.dumps(as_json(result), indent=2) + "\n").encode())
    return [predictor, table, *save(reliability_diagram(result, f"Reliability on {name}"), folder, "reliability")]
