"""Prompts from numbers and files, and which are alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from argus_sim.errors import InputError
from calibration.prompts import read_file, read_prompts
from calibration.text import cosine, embed, neighbours


def test_a_number_writes_prompts_of_both_splits() -> None:
    frame, origin = read_prompts("24", "sd")
    assert len(frame) == 24
    assert frame["split"].value_counts().to_dict() == {"train": 12, "test": 12}
    assert frame["text"].is_unique
    assert "seed" in origin
    assert read_prompts("24", "sd")[0].equals(frame)


def test_two_prompts_are_one_of_each_split() -> None:
    assert set(read_prompts("2", "sd")[0]["split"]) == {"train", "test"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "# ours\na fox\n\n an owl \na fox\n"),
        (
            "PartiPrompts.tsv",
            "Prompt\tCategory\tChallenge\tNote\na fox\tAnimals\tBasic\t\nan owl\tAnimals\tBasic\t\n",
        ),
        ("DrawBench Prompts.csv", "Prompts,Category\na fox,Colors\nan owl,Counting\n"),
        ("p.jsonl", '{"prompt": "a fox"}\n"an owl"\n'),
        ("p.json", json.dumps([{"caption": "a fox"}, {"caption": "an owl"}])),
    ],
)
def test_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    frame, _ = read_prompts(str(tmp_path / name), "sd")
    assert list(frame["text"]) == ["a fox", "an owl"]


def test_parquet(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a fox", "an owl"]}).to_parquet(tmp_path / "p.parquet")
    assert read_file(tmp_path / "p.parquet") == ["a fox", "an owl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("p.txt", b"one\n", "holds 1 different prompts"),
        ("p.csv", b"Category\nx\n", "no column 'prompt'; it has category"),
        ("p.csv", b"", "holds no rows"),
        ("p.jsonl", b'{"prompt": "x"}\n{oops}\n', "line 2: not JSON"),
        ("p.json", b"[1, 2]", "rows must be"),
        ("p.parquet", b"nope", "cannot be read"),
    ],
)
def test_unreadable_files_are_one_message(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(str(tmp_path / name), "sd")


def test_no_file_and_too_few() -> None:
    with pytest.raises(InputError, match="no such file"):
        read_prompts("nowhere.txt", "sd")
    with pytest.raises(InputError, match="at least 2"):
        read_prompts("1", "sd")


def test_neighbours_are_the_most_similar_others() -> None:
    texts = ["a red fox in the snow", "a red fox in the rain", "two blue owls", "two blue owls flying"]
    table = neighbours(["a", "b", "c", "d"], texts, "ngrams")
    assert list(table["neighbour"]) == ["b", "a", "d", "c"]
    assert table["similarity"].between(0.4, 0.99).all()


def test_equal_texts_are_wholly_similar() -> None:
    near = cosine(embed(["a fox", "a fox", ""], "ngrams"))
    assert near[0, 1] == pytest.approx(1.0)
    assert np.isfinite(near).all()


def test_unknown_embedding() -> None:
    with pytest.raises(InputError, match="no sentence embedding 'bert'"):
        embed(["x"], "bert")


def test_minilm_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fox", "owl", "red"]
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    rows = embed(["a fox", "a red owl"], f"minilm={tmp_path}")
    assert rows.shape == (2, 8)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0)
    assert embed(["a fox"], f"minilm={tmp_path}")[0] == pytest.approx(rows[0], abs=1e-5)


def test_no_minilm_there(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(InputError, match="give a folder as minilm=FOLDER"):
        embed(["x"], f"minilm={tmp_path}")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("PartiPrompts.tsv", 1632),
        ("drawbench.txt", 200),
        ("drawbench_categories.csv", 200),
        ("geneval_metadata.jsonl", 553),
        ("t2i_compbench.csv", 8000),
        ("mlperf_coco2014_captions_5k.tsv", 5000),
        ("diffusiondb_2m_first_5k.txt", 4999),  # one line of 5,000 is empty
    ],
)
def test_the_recorded_prompt_sets_are_read_as_published(data: Path, name: str, count: int) -> None:
    assert len(read_file(data / "prompts" / name)) == count
