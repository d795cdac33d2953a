"""Vectors of texts, their file, and what their cosines say of the similarity that thresholds are made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from argus_sim.core.cache import LatentCache
from argus_sim.errors import InputError
from argus_sim.provenance import Provenance
from argus_sim.similarity import Embeddings, SimilarityScale, hashed
from argus_sim.textfile import texts_in

MADE = (Provenance(kind="synthetic", source="a test"),)
SCALES = {name: SimilarityScale.of(name, where="a test") for name in ("hashed", "minilm")}


def test_hashed_vectors_tell_texts_apart() -> None:
    texts = ["a red fox in the snow", "the red fox in snow", "a blue whale under water", ""]
    vectors = hashed(texts).vectors
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-6)
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert near > 0.7 > 0.3 > far
    # A vector depends on its text alone.
    assert hashed([texts[2]]).vectors[0] == pytest.approx(vectors[2], abs=1e-6)


def test_a_file_of_embeddings_comes_back(tmp_path: Path) -> None:
    texts = ("a", "b", "ü, with a comma")
    made = Embeddings("mine", texts, hashed(texts).vectors, MADE)
    made.save(tmp_path / "sub" / "e.parquet")
    made.save(tmp_path / "again.parquet")
    back = Embeddings.read(tmp_path / "sub" / "e.parquet")
    assert (back.name, back.texts, back.provenance) == ("mine", texts, MADE)
    assert back.vectors.tobytes() == made.vectors.tobytes()
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "sub" / "e.parquet").read_bytes()
    assert back.of(["b", "a", "b"], where="x") == pytest.approx(made.vectors[[1, 0, 1]])
    with pytest.raises(
        InputError, match=r"x: has no vector of 'c' \(2 texts of 3 are missing\); make one with argus"
    ):
        back.of(["a", "c", "d"], where="x")


def test_what_is_no_file_of_embeddings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Embeddings.read(tmp_path / "none.parquet")
    other = tmp_path / "other.parquet"
    other.write_bytes(b"not parquet")
    with pytest.raises(InputError, match="is no file of embeddings"):
        Embeddings.read(other)
    pq.write_table(pa.table({"text": ["a"]}), other)
    with pytest.raises(InputError, match="is no file of embeddings"):
        Embeddings.read(other)
    Embeddings("mine", ("a", "b"), np.array([[1.0, 0.0], [1.0, 1.0]], dtype=np.float32), MADE).save(other)
    with pytest.raises(InputError, match=r"row 1: a vector must have length 1, found 1.41421"):
        Embeddings.read(other)


@given(st.sampled_from(sorted(SCALES)), st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_scale_rises_in_both(name: str, c: float, d: float, u: float, v: float) -> None:
    scale = SCALES[name]
    low, high = sorted((c, d))
    assert scale.similarity_of(low, u) <= scale.similarity_of(high, u) + 1e-12
    less, more = sorted((u, v))
    assert -1.0 <= scale.similarity_of(c, less) <= scale.similarity_of(c, more) + 1e-12 <= 1.0 + 1e-9
    assert scale.similarity_of(1.0, u) == 1.0


@given(st.sampled_from(sorted(SCALES)), st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), max_size=20))
def test_many_at_once_are_as_one_by_one(name: str, pairs: list[tuple[float, float]]) -> None:
    cosine, u = (np.array([pair[i] for pair in pairs], dtype=np.float64) for i in (0, 1))
    one_by_one = [SCALES[name].similarity_of(c, q) for c, q in pairs]
    assert SCALES[name].similarities_of(cosine, u).tolist() == pytest.approx(one_by_one, abs=1e-12)


def test_a_scale_at_its_knots_and_between() -> None:
    scale = SimilarityScale(
        embedding="x", target="y", cosine=(0.2, 0.6), probability=(0.0, 1.0), similarity=((0.4, 0.6), (0.6, 1.0)),
        provenance=MADE,
    )  # fmt: skip
    found = [scale.similarity_of(c, u) for c, u in ((0.2, 0.0), (0.6, 1.0), (0.4, 0.5), (0.9, 0.0))]
    assert found == pytest.approx([0.4, 1.0, 0.65, 0.6])
    # Below what was fitted: in proportion, to nothing.
    assert [scale.similarity_of(c, 0.5) for c in (0.1, 0.0, -1.0)] == pytest.approx([0.25, 0.0, 0.0])


@pytest.mark.parametrize("name", sorted(SCALES))
def test_texts_that_have_nothing_in_common_are_not_similar(name: str) -> None:
    """Whatever the text's quantile: none that a scale would serve from the latents of another."""
    scale = SCALES[name]
    for cosine in (-0.2, 0.0, 0.05, 0.14):
        assert max(scale.similarity_of(cosine, u) for u in np.linspace(0.0, 1.0, 101)) < 0.65


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (((0.4, 0.6),), "1 rows of similarity for 2 cosines"),
        (((0.4,), (0.6,)), "a value for each probability"),
        (((0.4, 0.6), (0.3, 0.7)), "must rise"),
        (((0.6, 0.4), (0.6, 0.7)), "must rise"),
    ],
)
def test_a_scale_that_cannot_be(table: tuple[tuple[float, ...], ...], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SimilarityScale(
            embedding="x",
            target="y",
            cosine=(0.2, 0.6),
            probability=(0.0, 1.0),
            similarity=table,
            provenance=MADE,
        )


def test_a_cache_of_one_unrelated_prompt_does_not_hit() -> None:
    texts = ("a red fox in the snow", "quantum chromodynamics lecture", "the old harbour at night, oil on canvas")
    vectors = hashed(texts).vectors
    for asked, stored in ((0, 1), (1, 0), (0, 2), (2, 1)):
        cache = LatentCache({5: 0.65, 10: 0.75}, vectors.shape[1])
        cache.insert(stored, vectors[stored])
        for u in (0.0, 0.5, 0.99):
            found = cache.lookup(vectors[asked], lambda c, u=u: SCALES["hashed"].similarity_of(c, u))  # type: ignore[misc]
            assert found.steps == 0, (texts[asked], texts[stored], u, found)


def test_a_scale_from_cosines_below_0() -> None:
    with pytest.raises(ValidationError, match=r"the lowest cosine must be above 0, found -0\.1"):
        SimilarityScale(
            embedding="x",
            target="y",
            cosine=(-0.1, 0.6),
            probability=(0.0, 1.0),
            similarity=((0.4, 0.6), (0.6, 1.0)),
            provenance=MADE,
        )


def test_an_embedding_without_a_scale() -> None:
    with pytest.raises(InputError, match=r"here: no scale .* 'minillm'; did you mean 'minilm'\?.*scale: cosine"):
        SimilarityScale.of("minillm", where="here")


def test_texts_in_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo, three\n")
    (tmp_path / "a.csv").write_text('prompt,x\n"two, three",1\n,2\n')
    assert texts_in(tmp_path / "a.txt", "prompt") == ["one", "two, three"]
    (tmp_path / "b.txt").write_bytes("\ufeffone\u2028still one\x0cand on\r\ntwo".encode())
    assert texts_in(tmp_path / "b.txt", "prompt") == ["one\u2028still one\x0cand on", "two"]
    assert texts_in(tmp_path / "a.csv", "prompt") == ["two, three"]
    with pytest.raises(InputError, match="promt"):
        texts_in(tmp_path / "a.csv", "promt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        texts_in(tmp_path / "b.txt", "prompt")
    (tmp_path / "c.txt").write_text("\n\n")
    with pytest.raises(InputError, match="holds no text"):
        texts_in(tmp_path / "c.txt", "prompt")
