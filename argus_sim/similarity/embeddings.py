"""Sentence embeddings for the approximate cache: a vector of length 1 for each text.

The simulator has no neural network. Vectors of one are made once, by ``argus-calibrate embed``, and read from a
file; without a file there are hashed words and character n-grams, which need nothing and know no synonyms.

The file is Parquet: a column ``text`` and a column ``vector`` (list of float32, one length). Its metadata has,
under ``argus_sim.embeddings``, a JSON object with the ``name`` of the embedding and its ``provenance``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from argus_sim.errors import InputError
from argus_sim.provenance import Provenance

Vectors = npt.NDArray[np.float32]

_KEY = b"argus_sim.embeddings"
_FEATURES = 1 << 18
_DIMENSION = 384
HASHED = "hashed"


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    provenance: tuple[Provenance, ...]


@dataclass(frozen=True)
class Embeddings:
    """Texts and their vectors.

    Attributes:
        name: Of the embedding, e.g. ``minilm`` or ``hashed``.
        texts: Distinct.
        vectors: float32[texts, dimension], rows of length 1 (0 for a text without any word).
        provenance: How they were made.
    """

    name: str
    texts: tuple[str, ...]
    vectors: Vectors
    provenance: tuple[Provenance, ...]

    def of(self, texts: Sequence[str], *, where: str) -> Vectors:
        """float32[n, dimension]: the rows of these texts; :class:`InputError` names the first that is not
        here."""
        at = {text: i for i, text in enumerate(self.texts)}
        unknown = [text for text in texts if text not in at]
        if unknown:
            raise InputError(
                f"has no vector of {unknown[0]!r} ({len(unknown)} texts of {len(texts)} are missing); make one "
                "with argus-calibrate embed",
                where=where,
            )
        return self.vectors[[at[text] for text in texts]]

    def save(self, path: Path) -> None:
        """Write a file that :meth:`read` gives back; it appears whole or not at all."""
        header = _Header(name=self.name, provenance=self.provenance)
        flat = pa.array(np.ascontiguousarray(self.vectors).ravel(), pa.float32())
        table = pa.table(
            {
                "text": pa.array(list(self.texts), pa.string()),
                "vector": pa.FixedSizeListArray.from_arrays(flat, self.vectors.shape[1]),
            }
        ).replace_schema_metadata({_KEY: header.model_dump_json().encode()})
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            pq.write_table(table, part, compression="zstd")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Embeddings:
        """The content of a file.

        Raises:
            InputError: No such file, or it is none of embeddings.
        """
        where = str(path)
        if not path.is_file():
            raise InputError("no such file", where=where)
        try:
            table = pq.read_table(path)
            metadata: dict[bytes, bytes] = table.schema.metadata or {}
            header = _Header.model_validate(json.loads(metadata[_KEY]))
            texts = table.column("text").to_pylist()
            vector: Any = table.column("vector").combine_chunks()
            dimension = vector.type.list_size
            vectors = np.array(vector.flatten().to_numpy(), dtype=np.float32).reshape(len(texts), dimension)
        except (pa.ArrowException, KeyError, AttributeError, ValueError, ValidationError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"is no file of embeddings: {reason}", where=where) from None
        length = np.linalg.norm(vectors.astype(np.float64), axis=1)
        wrong = np.flatnonzero(~(np.isclose(length, 1.0, atol=1e-3) | (length == 0.0)))
        if len(wrong):
            raise InputError(
                f"a vector must have length 1, found {length[wrong[0]]:g}", where=f"{where}: row {wrong[0]}"
            )
        return cls(header.name, tuple(texts), vectors, header.provenance)


def hashed(texts: Sequence[str]) -> Embeddings:
    """Hashed words (English stop words left out) and character 3- to 5-grams, half each, in 384 dimensions.

    Each text's vector depends on that text alone. The projection is random but the same every time (Achlioptas,
    JCSS 2003): it moves a cosine by some 0.05.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.preprocessing import normalize

    words = HashingVectorizer(n_features=_FEATURES, alternate_sign=False, stop_words="english")
    letters = HashingVectorizer(
        n_features=_FEATURES, alternate_sign=False, analyzer="char_wb", ngram_range=(3, 5)
    )
    both = csr_matrix(hstack([words.transform(texts), letters.transform(texts)]))
    vectors = (both @ _projection()).toarray()
    return Embeddings(
        HASHED,
        tuple(texts),
        np.asarray(normalize(vectors), dtype=np.float32),
        (Provenance(kind="synthetic", source="argus_sim.similarity.hashed: hashed words and character n-grams"),),
    )


def _projection() -> Any:
    """Sparse matrix of 2^19 x 384: a few entries of each row are 1 or -1, drawn with a seed of their own."""
    from scipy.sparse import csr_matrix

    rows, ones = 2 * _FEATURES, 8
    rng = np.random.default_rng(384)
    column = rng.integers(0, _DIMENSION, size=rows * ones)
    sign = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), size=rows * ones)
    return csr_matrix((sign, column, np.arange(0, rows * ones + 1, ones)), shape=(rows, _DIMENSION))
