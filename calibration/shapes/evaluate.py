"""Judge the zoo on fresh captions: ``python -m calibration.shapes.evaluate --weights DIR --out DIR``.

Writes `scores.json` (per model, number of steps and complexity class: mean CLIP score, share of pictures that are
exactly right, share of right facts), `samples.png` and `training_curve.png` into the folder `--out`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPProcessor

from calibration.shapes.captions import MAX_ITEMS, Caption, draw, negatives
from calibration.shapes.networks import MAX_TOKENS, UNETS
from calibration.shapes.render import check, render
from calibration.shapes.save import load_vae
from calibration.shapes.train import pooled, to_unit
from calibration.shapes.trainer import PLANS

Pixels = npt.NDArray[np.uint8]

GUIDANCE: Final = 3.0
HELD_OUT_SEED: Final = 7
KINDS: Final = ("colour", "shape", "size", "relation", "fewer", "more", "swapped")


def held_out(per_class: int, seed: int = HELD_OUT_SEED) -> list[Caption]:
    """Captions of every class in turn; only those of one or two shapes can have been in training."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return [draw(i % MAX_ITEMS + 1, rng) for i in range(per_class * MAX_ITEMS)]


class Scorer:
    """100 x cosine of picture and caption in the zoo's CLIP, negatives cut off: a CLIPScore."""

    def __init__(self, folder: Path) -> None:
        self.clip = CLIPModel.from_pretrained(folder).eval()
        self.processor = CLIPProcessor.from_pretrained(folder)

    @torch.no_grad()
    def pictures(self, pictures: Pixels) -> torch.Tensor:
        values = self.processor.image_processor(images=list(pictures), return_tensors="pt").pixel_values
        return torch.nn.functional.normalize(pooled(self.clip.get_image_features(pixel_values=values)), dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> torch.Tensor:
        tokens = self.processor.tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
        return torch.nn.functional.normalize(pooled(self.clip.get_text_features(**tokens)), dim=-1)

    def score(self, pictures: Pixels, texts: list[str]) -> npt.NDArray[np.float64]:
        cosine = (self.pictures(pictures) * self.texts(texts)).sum(-1)
        return (100 * cosine.clamp(min=0)).double().numpy()


def load(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionPipeline, texts: list[str], seed: int, steps: int = 50, guidance: float = GUIDANCE
) -> Pixels:
    """uint8[N, 32, 32, 3]; picture i starts from the noise of seed + i whatever the batch."""
    out: list[Pixels] = []
    for start in range(0, len(texts), 25):
        part = texts[start : start + 25]
        dice = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        made = pipeline(
            part, num_inference_steps=steps, guidance_scale=guidance, generator=dice, output_type="np"
        ).images
        out.append(np.rint(made * 255).astype(np.uint8))
    return np.concatenate(out)


def by_class(values: npt.ArrayLike, captions: list[Caption]) -> dict[str, float]:
    """Mean per complexity class and over all."""
    array, classes = np.asarray(values, np.float64), np.array([c.complexity_class for c in captions])
    means = {str(c): round(float(array[classes == c].mean()), 3) for c in range(1, MAX_ITEMS + 1)}
    return means | {"all": round(float(array.mean()), 3)}


def judge(pictures: Pixels, captions: list[Caption], scorer: Scorer) -> dict[str, dict[str, float]]:
    checked = [check(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
    return {
        "clip_score": by_class(scorer.score(pictures, [str(c) for c in captions]), captions),
        "exactly_right": by_class([right for right, _ in checked], captions),
        "facts_right": by_class([share for _, share in checked], captions),
    }


def discrimination(captions: list[Caption], scorer: Scorer) -> dict[str, float]:
    """Per kind of wrong caption: how often a rendered picture prefers its own caption; and the mean gap."""
    rng = np.random.Generator(np.random.PCG64(1))
    own = np.stack([render(caption, 10_000 + i) for i, caption in enumerate(captions)])
    right = scorer.score(own, [str(caption) for caption in captions])
    wins: dict[str, list[float]] = {kind: [] for kind in KINDS}
    gaps: list[float] = []
    rows, texts, kinds = [], [], []
    for i, caption in enumerate(captions):
        for kind, wrong in negatives(caption, rng):
            rows.append(i)
            texts.append(str(wrong))
            kinds.append(kind)
    for row, kind, score in zip(rows, kinds, scorer.score(own[rows], texts), strict=True):
        wins[kind].append(float(right[row] > score))
        gaps.append(float(right[row] - score))
    shares = {kind: round(float(np.mean(won)), 3) for kind, won in wins.items()}
    every = [won for kind in KINDS for won in wins[kind]]
    return shares | {"all": round(float(np.mean(every)), 3), "mean_gap": round(float(np.mean(gaps)), 2)}


def rebuilt(weights: Path, captions: list[Caption]) -> Pixels:
    """Rendered pictures after the VAE: the best that any of the denoisers can do."""
    vae = load_vae(next(iter(sorted(weights.glob("shapes-*/vae")))))
    own = np.stack([render(caption, 10_000 + i) for i, caption in enumerate(captions)])
    with torch.no_grad():
        x = to_unit(torch.from_numpy(own).permute(0, 3, 1, 2))
        y = vae.decode(vae.encode(x).latent_dist.mean).sample
    unit: Pixels = ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return unit


def draw_samples(weights: Path, file: Path, models: list[str]) -> None:
    """Two prompts of every class (rows) by every model (columns): the first pictures, not the best."""
    import matplotlib.pyplot as plt

    captions = sorted(held_out(2, seed=11), key=lambda caption: caption.complexity_class)
    texts = [str(caption) for caption in captions]
    columns = {"rendered": np.stack([render(caption, i) for i, caption in enumerate(captions)])}
    columns |= {name: generate(load(weights / name), texts, seed=0) for name in models}
    figure, axes = plt.subplots(len(captions), len(columns), figsize=(9.5, 1.25 * len(captions)))
    for row, caption in enumerate(captions):
        for axis, (name, pictures) in zip(axes[row], columns.items(), strict=True):
            axis.imshow(pictures[row], interpolation="nearest")
            right, share = check(pictures[row], caption)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel("right" if right else f"{share:.0%} of facts", fontsize=6, labelpad=2)
            if row == 0:
                axis.set_title(name.removeprefix("shapes-"), fontsize=9)
        text = texts[row].replace(" above", "\nabove").replace(" below", "\nbelow")
        text = text.replace(" left of", "\nleft of").replace(" right of", "\nright of")
        axes[row, 0].set_ylabel(text, fontsize=5.5, rotation=0, ha="right", va="center")
    figure.tight_layout(h_pad=0.4, w_pad=0.2)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_curves(training: Path, file: Path) -> None:
    """Losses of all stages against steps."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    panel = {"vae": 0, "text": 0, "clip": 1}
    for number, stage in enumerate(PLANS):
        with (training / f"{stage}.csv").open() as log:
            rows = list(csv.DictReader(log))
        rounds = stage.count("+")  # each goes on where the one before it ended
        before = sum(PLANS[stage[: len(stage) - k]].steps for k in range(1, rounds + 1))
        for loss in [key for key in rows[0] if key not in ("step", "seconds", "kl")]:
            axes[panel.get(stage, 2)].plot(
                [before + int(row["step"]) for row in rows],
                [float(row[loss]) for row in rows],
                label=loss if stage in panel else stage,
                color=f"C{number}" if stage not in panel else None,
            )
    for axis, title in zip(axes, ("VAE, text encoder", "CLIP", "denoisers: velocity error"), strict=True):
        axis.set(title=title, xlabel="step", yscale="log")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge the shapes zoo on held-out captions.")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=40, help="captions per complexity class")
    parser.add_argument("--steps", default="50,25,10", help="denoising steps, separated by commas")
    parser.add_argument("--models", default=",".join(UNETS))
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    models = chosen.models.split(",")
    captions, scorer = held_out(chosen.per_class), Scorer(chosen.weights / "shapes-clip")
    texts = [str(caption) for caption in captions]
    own = np.stack([render(caption, 10_000 + i) for i, caption in enumerate(captions)])
    scores: dict[str, Any] = {
        "captions": len(captions),
        "guidance_scale": chosen.guidance,
        "clip_prefers_right_caption": discrimination(captions, scorer),
        "rendered": judge(own, captions, scorer),
        "rebuilt_by_vae": judge(rebuilt(chosen.weights, captions), captions, scorer),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name in models:
        pipeline = load(chosen.weights / name)
        scores[name] = {}
        for steps in map(int, chosen.steps.split(",")):
            made = generate(pipeline, texts, seed=1000, steps=steps, guidance=chosen.guidance)
            scores[name][f"{steps} steps"] = judge(made, captions, scorer)
            print(name, steps, json.dumps(scores[name][f"{steps} steps"]), flush=True)
        (chosen.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    draw_samples(chosen.weights, chosen.out / "samples.png", models)
    if all((chosen.weights / "training" / f"{stage}.csv").is_file() for stage in PLANS):
        draw_curves(chosen.weights / "training", chosen.out / "training_curve.png")


if __name__ == "__main__":
    main()
