"""A recorded log of an approximate cache: what was in the cache, and how its similarities follow from ours.

The log (``pipeline/cache_logs`` of the Argus authors' artefact, 2024) has, for each of 20,000 consecutive
queries, the similarity of the nearest cached prompt, and that prompt where the similarity is above 0.65. It
shows how the cache was
run: a query that missed is in it from the next query on, one that hit never enters (447 of 447 repeats of a
miss find themselves), nothing is dropped, and 1,076 prompts that were found had never missed before: they were
in it at the start. Prompts that were there and never found cannot be known; they were nearest to no query that
hit.

The similarities are those of CLIP's text encoder. A :class:`~argus_sim.similarity.SimilarityScale` for another
embedding
is fitted with the contents that the log implies: for each query the largest cosine to what was cached at that
time, and the similarity that the log has. That uses misses as well, whose neighbour the log does not name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from argus_sim.columns import read_numbers, read_texts
from argus_sim.core.cache import ARTEFACT_THRESHOLDS, LatentCache
from argus_sim.errors import InputError
from argus_sim.provenance import Provenance
from argus_sim.similarity import HASHED, SAME, Embeddings, SimilarityScale, hashed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STEPS: Final = 50
#: The artefact's: steps skipped of 50 -> similarity that has to be exceeded.
THRESHOLDS: Final = {round(STEPS * part): above for part, above in ARTEFACT_THRESHOLDS.items()}
SOURCE: Final = "github.com/skejriwal44/Argus_T2I: pipeline/cache_logs"
_BINS: Final = 20
_PROBABILITIES: Final = np.linspace(0.0, 1.0, 41)


@dataclass(frozen=True)
class CacheLog:
    """A log as columns, n long.

    Attributes:
        query: What was asked for.
        cached: The prompt that was found; empty for a miss.
        similarity: float64[n], of the nearest cached prompt, found or not.
    """

    query: list[str]
    cached: list[str]
    similarity: Floats

    @classmethod
    def read(cls, path: Path) -> CacheLog:
        """The columns ``Scores, Queries, Caches`` of a CSV file.

        Raises:
            InputError: It is not such a file, or a query without a cached prompt is similar enough to have one.
        """
        log = cls(
            read_texts(path, "Queries"),
            [text or "" for text in read_texts(path, "Caches")],
            read_numbers(path, "Scores"),
        )
        hit = log.similarity > THRESHOLDS[5]
        odd = np.flatnonzero(hit != np.array([bool(text) for text in log.cached]))
        if len(odd):
            raise InputError(
                f"a query has a cached prompt where its similarity is above {THRESHOLDS[5]}; here it is "
                f"{log.similarity[odd[0]]:g}, and the prompt {log.cached[odd[0]]!r}",
                where=f"{path}: row {odd[0] + 1}",
            )
        return log

    @property
    def texts(self) -> list[str]:
        """All distinct texts, sorted."""
        return sorted({*self.query, *self.cached} - {""})

    @property
    def steps(self) -> Ints:
        """int64[n]: the steps that each query could skip."""
        return steps_of(self.similarity)

    def at_start(self) -> list[str]:
        """The prompts that were found before they had missed: in the cache before the first query."""
        missed: set[str] = set()
        found: dict[str, None] = {}
        for query, cached in zip(self.query, self.cached, strict=True):
            if not cached:
                missed.add(query)
            elif cached not in missed:
                found[cached] = None
        return list(found)

    def nearest(self, vector_of: dict[str, npt.NDArray[np.float32]]) -> Floats:
        """float64[n]: the largest cosine of each query to what the log says was cached at that time."""
        cache = self._filled(vector_of)
        cosine = np.empty(len(self.query))
        for i, (query, cached) in enumerate(zip(self.query, self.cached, strict=True)):
            cosine[i] = cache.lookup(vector_of[query]).similarity
            if not cached:
                cache.insert(query, vector_of[query])
        return cosine

    def replay(
        self, vector_of: dict[str, npt.NDArray[np.float32]], scale: SimilarityScale, rng: np.random.Generator
    ) -> Ints:
        """int64[n]: the steps that each query may skip in a simulated cache with the same start and the same
        queries.

        Nothing else of the log is used: what enters the cache is what the simulated one missed.
        """
        cache = self._filled(vector_of)
        texts = self.texts
        u = dict(zip(texts, rng.random(len(texts)).tolist(), strict=True))
        steps = np.empty(len(self.query), dtype=np.int64)
        for i, query in enumerate(self.query):
            quantile = u[query]
            found = cache.lookup(vector_of[query], lambda cosine, q=quantile: scale.similarity_of(cosine, q))  # type: ignore[misc]
            steps[i] = found.steps
            if not found.steps:
                cache.insert(query, vector_of[query])
        return steps

    def _filled(self, vector_of: dict[str, npt.NDArray[np.float32]]) -> LatentCache:
        cache = LatentCache(THRESHOLDS, len(next(iter(vector_of.values()))))
        for text in self.at_start():
            cache.insert(text, vector_of[text])
        return cache


def vectors_of(log: CacheLog, embedding: str) -> tuple[str, dict[str, npt.NDArray[np.float32]]]:
    """The name of an embedding, and the vector of each text of a log.

    Args:
        log: Whose texts.
        embedding: ``hashed``, or a file of :class:`~argus_sim.similarity.Embeddings` that has them all.
    """
    texts = log.texts
    made = hashed(texts) if embedding == HASHED else Embeddings.read(Path(embedding))
    return made.name, dict(zip(texts, made.of(texts, where=embedding), strict=True))


def fit_scale(cosine: Floats, similarity: Floats, embedding: str, derived: str) -> SimilarityScale:
    """Quantiles of the similarity in bins of equally many cosines, made to rise (isotonic regression).

    Args:
        cosine, similarity: float64[n], pairs.
        embedding: What the cosines are of.
        derived: Which pairs they are, in words.
    """
    from sklearn.isotonic import IsotonicRegression

    known = cosine < SAME
    cosine, similarity = cosine[known], similarity[known]
    edges = np.quantile(cosine, np.linspace(0.0, 1.0, _BINS + 1))
    where = np.clip(np.searchsorted(edges, cosine, side="right") - 1, 0, _BINS - 1)
    middle = np.array([cosine[where == b].mean() for b in range(_BINS)])
    quantiles = np.array([np.quantile(similarity[where == b], _PROBABILITIES) for b in range(_BINS)])
    for column in range(quantiles.shape[1]):
        quantiles[:, column] = IsotonicRegression().fit(middle, quantiles[:, column]).predict(middle)
    rounded = np.round(np.minimum(quantiles, 1.0), 4)
    return SimilarityScale(
        embedding=embedding,
        target="cosine of CLIP text vectors, as in the log",
        cosine=tuple(np.round(middle, 4).tolist()),
        probability=tuple(np.round(_PROBABILITIES, 4).tolist()),
        similarity=tuple(tuple(row) for row in rounded.tolist()),
        provenance=(Provenance(kind="recorded", source=SOURCE, derived=derived),),
    )


def shares(steps: Ints) -> Floats:
    """Percent of the queries at each depth: 0, 5, 10, 15, 20, 25."""
    return np.array([100.0 * np.mean(steps == k) for k in (0, *THRESHOLDS)])


def hit_ratios(steps: Ints, queries: int = 2000) -> Floats:
    """Hit ratio of each ``queries`` successive queries."""
    return np.array([np.mean(steps[i : i + queries] > 0) for i in range(0, len(steps), queries)])


def steps_of(similarity: Floats) -> Ints:
    """int64[n]: the steps that similarities allow to skip."""
    cuts = sorted(THRESHOLDS.values())
    return np.array([0, *sorted(THRESHOLDS)])[np.searchsorted(cuts, similarity, side="left")]
