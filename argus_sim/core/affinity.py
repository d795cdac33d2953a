"""From a prompt's text to the quality it would have at each level, and so to its affinity.

The predictor learns from the profile's training prompts and is asked about the others. Predictions depend on
nothing but the text, so they are made once, for all prompts of a profile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from argus_sim.domain import VariantId
from argus_sim.errors import InputError
from argus_sim.profile import Profile

Floats = npt.NDArray[np.float64]

#: Hashed features of the text, folds for out-of-fold predictions, ridge penalties to choose among.
_FEATURES = 1 << 12
_FOLDS = 5
_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class QualityPredictor:
    """What a policy may believe about the quality of prompts.

    Attributes:
        predicted: float64[P, V], expected relative quality of each prompt at each variant. For training prompts
            these are out-of-fold, so that they are as good (or bad) as for prompts never seen.
        train: int64[T], indices of the training prompts.
        observed: float64[T, V], the measured relative quality of the training prompts.
        of_texts: Texts -> float64[n, V]: predictions for prompts that the profile does not know; None where
            the predictor cannot (``perfect``).
    """

    predicted: Floats
    train: npt.NDArray[np.int64]
    observed: Floats
    of_texts: Callable[[Sequence[str]], Floats] | None = None

    def stand_in(self, text: str) -> int:
        """:meth:`stand_ins` of one text."""
        return int(self.stand_ins([text])[0])

    def stand_ins(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """int64[n]: the prompts of the profile whose predicted quality is nearest to that of texts it does not
        know, among those that nothing was learnt from (where there are any).

        A policy knows prompts by their position in the profile, and all it may know of one is its predicted
        quality: so a prompt with (nearly) the same prediction is treated in (nearly) the same way, tables keep
        their length, and no policy needs to know that there are other texts. :class:`InputError` where the
        predictor cannot read texts.
        """
        if self.of_texts is None:
            raise InputError("this predictor knows the profile's prompts only; serve with predictor: text")
        predicted = self.of_texts(texts)
        held_out = np.setdiff1d(np.arange(len(self.predicted)), self.train)
        among = held_out if len(held_out) else self.train
        candidates = self.predicted[among]
        nearest = [np.argmin(((candidates - row) ** 2).sum(axis=1)) for row in predicted]
        return np.asarray(among[nearest], dtype=np.int64)

    def affinity(self, ladder: Sequence[VariantId], tolerance: float) -> npt.NDArray[np.int64]:
        """int64[P]: the most approximate level of a ladder predicted within ``tolerance`` of the ladder's best.

        Args:
            ladder: Variants, least approximate first.
            tolerance: Relative loss that is accepted, e.g. 0.05.
        """
        quality = self.predicted[:, list(ladder)]
        good = quality >= (1.0 - tolerance) * quality.max(axis=1, keepdims=True)
        return np.asarray(len(ladder) - 1 - np.argmax(good[:, ::-1], axis=1))


def from_text(profile: Profile) -> QualityPredictor:
    """Ridge regression on hashed word n-grams of the prompt: the deviation of each variant from its mean.

    All variants share one penalty, chosen by the out-of-fold error on the training prompts. Where the text says
    nothing about quality the largest penalty wins, and the prediction is the mean.
    """
    # Imported here: half a second that an experiment without a predictor does not need to spend.
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold

    quality = profile.relative_quality()
    train = np.flatnonzero(profile.is_train)
    other = np.flatnonzero(~profile.is_train)
    features = HashingVectorizer(n_features=_FEATURES, ngram_range=(1, 2), alternate_sign=False, norm="l2")
    # The length says much about how much there is to get wrong, and normalised n-grams forget it.
    known = np.array([[len(t.split())] for t in profile.prompt_texts], dtype=np.float64)
    middle, spread = known[train].mean(), known[train].std() or 1.0
    from scipy.sparse import csr_matrix, hstack

    def encode(texts: Sequence[str]) -> csr_matrix:
        words = np.array([[len(t.split())] for t in texts], dtype=np.float64)
        return csr_matrix(hstack([features.transform(texts), csr_matrix((words - middle) / spread * 0.3)]))

    x = encode(profile.prompt_texts)
    y = quality[train]
    folds = list(KFold(n_splits=min(_FOLDS, len(train))).split(train))
    best: tuple[float, float, Floats] | None = None
    for penalty in _PENALTIES:
        out_of_fold = np.empty_like(y)
        for fit, held_out in folds:
            model = Ridge(alpha=penalty).fit(x[train[fit]], y[fit])
            out_of_fold[held_out] = np.asarray(model.predict(x[train[held_out]])).reshape(len(held_out), -1)
        error = float(((out_of_fold - y) ** 2).mean())
        if best is None or error < best[0]:
            best = (error, penalty, out_of_fold)
    assert best is not None
    predicted = np.empty_like(quality)
    predicted[train] = best[2]
    whole = Ridge(alpha=best[1]).fit(x[train], y)
    if len(other):
        predicted[other] = np.asarray(whole.predict(x[other])).reshape(len(other), -1)

    def of_texts(texts: Sequence[str]) -> Floats:
        return np.asarray(whole.predict(encode(texts)), dtype=np.float64).reshape(len(texts), -1)

    return QualityPredictor(predicted, train, y, of_texts)


def perfect(profile: Profile) -> QualityPredictor:
    """Knows the quality of every prompt: past the oracle boundary, for ablations that say so by name."""
    quality = profile.relative_quality()
    train = np.flatnonzero(profile.is_train)
    return QualityPredictor(quality, train, quality[train])


def blurred(profile: Profile, accuracy: float, rng: np.random.Generator) -> QualityPredictor:
    r"""Knows the quality of prompts, but confuses them: past the oracle boundary, as :func:`perfect`.

    .. math:: \hat q_p = \bar q + a\,(q_p - \bar q) + \sqrt{1 - a^2}\,(q_{\pi(p)} - \bar q)

    with a random permutation of the prompts: predictions have the mean and spread of the true qualities and a
    correlation with them of ``accuracy``, on average over permutations.
    """
    truth = profile.relative_quality()
    mean = truth.mean(axis=0)
    stranger = truth[rng.permutation(len(truth))]
    predicted = mean + accuracy * (truth - mean) + np.sqrt(1.0 - accuracy**2) * (stranger - mean)
    train = np.flatnonzero(profile.is_train)
    return QualityPredictor(predicted, train, truth[train])


PREDICTORS = {"text": from_text, "perfect": perfect}
