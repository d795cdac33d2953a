"""The shapes zoo: its grammar and pictures, the models that are shipped, and that they can be trained anew."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from argus_sim.errors import InputError  # noqa: E402
from calibration.shapes import evaluate, train, trainer  # noqa: E402
from calibration.shapes.captions import COLOURS, SHAPES, compatible, draw, negatives, parse, write_prompts  # noqa: E402
from calibration.shapes.networks import UNETS, make_tokenizer  # noqa: E402
from calibration.shapes.render import check, detect, render  # noqa: E402
from calibration.zoo import SHAPES as WEIGHTS  # noqa: E402
from tests.run_docs import run_page  # noqa: E402

HERE = Path(evaluate.__file__).parent
CHAIN = "a small red circle left of a large blue square above a green cross"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


# -- captions and pictures ---------------------------------------------------------------------------------


def test_a_caption_is_read_as_it_is_written() -> None:
    for seed in range(200):
        caption = draw(seed % 5 + 1, rng(seed))
        assert parse(str(caption)) == caption
        assert caption.fits
    assert parse(CHAIN).cells == ((0, 0), (1, 0), (1, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red circle under a blue square", "not a shapes caption at ' under"),
        ("a pink circle", "not a shapes caption at 'a pink circle'"),
        ("a red circle left of a red circle right of a blue square", "does not fit"),
    ],
)
def test_what_is_no_caption(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


def test_prompts_are_distinct_and_of_all_classes() -> None:
    prompts = write_prompts(500, 41)
    assert len(set(prompts)) == 500
    classes = [caption.complexity_class for caption in prompts]
    assert classes[:5] == [1, 2, 3, 4, 5]
    assert classes.count(1) == len(COLOURS) * len(SHAPES) * 3  # all there are
    assert prompts[:50] == write_prompts(50, 41)


def test_pictures_are_the_same_bytes_anywhere() -> None:
    pictures = [render(draw(i % 5 + 1, rng(i)), i) for i in range(50)]
    digest = hashlib.sha256(np.stack(pictures).tobytes()).hexdigest()
    assert digest == "651ebda51abee4d877197ea118bc5f13fae95707077d73ce69411ebf5f49a648"


def test_the_check_accepts_what_is_right_and_only_that() -> None:
    for seed in range(60):
        caption = draw(seed % 5 + 1, rng(seed))
        picture = render(caption, seed)
        assert check(picture, caption) == (True, 1.0)
        for _, wrong in negatives(caption, rng(seed)):
            right, share = check(picture, wrong)
            assert not right
            assert share < 1.0
            assert not compatible(caption, wrong)
    assert not detect(np.zeros((32, 32, 3), np.uint8))


# -- what is shipped ---------------------------------------------------------------------------------------


def scores() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "scores.json").read_text())
    return found


def test_the_weights_fit_a_repository() -> None:
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 12e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt", ".csv"}


def test_the_record_is_that_of_the_plan() -> None:
    record = json.loads((WEIGHTS / "training.json").read_text())
    assert list(record) == list(trainer.PLANS)
    for stage, plan in trainer.PLANS.items():
        told = record[stage]
        assert (told["steps"], told["batch"], told["learning_rate"]) == (plan.steps, plan.batch, plan.rate)
        assert tuple(told["classes_mixed"]) == plan.mix
        assert (told["seed"], told["scenes"]) == (trainer.SEED, trainer.SCENES)
        assert (WEIGHTS / "training" / f"{stage}.csv").read_text().count("\n") == plan.steps // 50 + 1


def test_the_model_card_tells_the_scores() -> None:
    card = (HERE / "README.md").read_text()
    found = scores()
    for model in UNETS:
        for steps, of in found[model].items():
            values = [of["clip_score"][k] for k in ("1", "2", "3", "4", "5", "all")]
            assert f"| {model}, {steps} | " + " | ".join(f"{v:.1f}" for v in values) + " |" in card
    total = sum(file.stat().st_size for file in WEIGHTS.rglob("*.safetensors"))
    assert f"{total:,} bytes" in card
    for picture in ("samples.png", "training_curve.png"):
        assert f"({picture})" in card
        assert (HERE / picture).is_file()


def test_simple_prompts_come_out_as_well_from_the_tiny_model_and_crowded_ones_do_not() -> None:
    """What the card says, made anew for a few captions; ten steps do for these pictures."""
    told = {model: found["10 steps"]["clip_score"] for model, found in scores().items() if model in UNETS}
    assert told["shapes-large"]["1"] - told["shapes-tiny"]["1"] < 6.0
    assert told["shapes-large"]["5"] - told["shapes-tiny"]["5"] > 20.0
    assert [told[model]["all"] for model in UNETS] == sorted((t["all"] for t in told.values()), reverse=True)
    captions = [caption for caption in evaluate.held_out(6) if caption.complexity_class in (1, 5)]
    judge = evaluate.Scorer(WEIGHTS / "shapes-clip")
    classes = np.array([c.complexity_class for c in captions])
    means: dict[str, tuple[float, float]] = {}
    for model in ("shapes-large", "shapes-tiny"):
        pictures = evaluate.generate(evaluate.load(WEIGHTS / model), [str(c) for c in captions], 0, steps=10)
        found = judge.score(pictures, [str(c) for c in captions])
        means[model] = (found[classes == 1].mean(), found[classes == 5].mean())
    assert means["shapes-large"][0] - means["shapes-tiny"][0] < 12.0
    assert means["shapes-large"][1] - means["shapes-tiny"][1] > 12.0


def test_words_of_the_grammar_are_one_token_each() -> None:
    ids = make_tokenizer()(CHAIN).input_ids
    assert len(ids) == len(CHAIN.split()) + 2


# -- trained anew ------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same stages, a few steps of each."""
    plans = {
        stage: trainer.Plan(4, 4, plan.rate, plan.mix)
        for stage, plan in trainer.PLANS.items()
        if stage in ("vae", "text", "clip", "shapes-tiny", "shapes-large", "shapes-large+")
    }
    for module in (trainer, train):
        monkeypatch.setattr(module, "PLANS", plans)
        monkeypatch.setattr(module, "SCENES", 40)


def run_training(out: Path, monkeypatch: pytest.MonkeyPatch, stages: str) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--out", str(out), "--stages", stages])
    train.main()


@pytest.mark.usefixtures("short")
def test_one_command_trains_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path / "a")])
    train.main()
    names = {"training", "training.json", "shapes-clip", "shapes-tiny", "shapes-large"}
    assert {file.name for file in (tmp_path / "a").iterdir()} == names
    pipeline = evaluate.load(tmp_path / "a" / "shapes-large")
    assert evaluate.generate(pipeline, [CHAIN], 0, steps=2).shape == (1, 32, 32, 3)
    # A finished stage is left alone; the same seed gives the same weights.
    before = (tmp_path / "a" / "shapes-tiny" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    run_training(tmp_path / "a", monkeypatch, "shapes-tiny")
    run_training(tmp_path / "b", monkeypatch, "vae,text,shapes-tiny")
    for folder in ("a", "b"):
        file = tmp_path / folder / "shapes-tiny" / "unet" / "diffusion_pytorch_model.safetensors"
        assert file.read_bytes() == before


def test_the_model_card_says_how_to_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calibration").symlink_to(HERE.parent)
    assert run_page((HERE / "README.md").read_text("utf-8"), tmp_path, monkeypatch) == 1
