"""Sentence embeddings in a file, for the simulator, which has no neural network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from argus_sim.errors import InputError
from argus_sim.provenance import Provenance
from argus_sim.similarity import Embeddings
from argus_sim.textfile import texts_in
from calibration.text import MINILM, embed


def texts_of(sources: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The distinct texts of profiles and files, sorted.

    Args:
        sources: Names or folders of profiles, ``.txt`` files with a text per line, ``.csv`` files.
        columns: Which columns of the ``.csv`` files; without any, ``prompt``.

    Raises:
        InputError: A source is not to be read, or columns are named where no ``.csv`` file is.
    """
    from argus_sim.profile import Profile

    if columns and not any(Path(source).suffix == ".csv" for source in sources):
        raise InputError(f"only .csv files have columns, and {', '.join(sources)} is none", where="--column")
    columns = columns or ("prompt",)
    found: set[str] = set()
    for source in sources:
        path = Path(source)
        if path.suffix in (".csv", ".txt"):
            for column in columns if path.suffix == ".csv" else ("",):
                found.update(texts_in(path, column))
        else:
            found.update(Profile.load(source).prompt_texts)
    return sorted(found)


def make(texts: Sequence[str], embedding: str) -> Embeddings:
    """The vectors of these texts; the order in which they are computed is by length, which is faster.

    Raises:
        InputError: No such embedding, or its weights are not there.
    """
    name = embedding.partition("=")[0]
    if name != "minilm":
        raise InputError(
            f"a file holds embeddings of minilm, not {embedding!r}; hashed ones need none", where="--embedding"
        )
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    made = embed([texts[i] for i in order], embedding).astype(np.float32)
    vectors = np.empty_like(made)
    vectors[order] = made
    source = f"{MINILM}, mean of the last hidden states, length 1"
    return Embeddings(name, tuple(texts), vectors, (Provenance(kind="measured", source=source),))
