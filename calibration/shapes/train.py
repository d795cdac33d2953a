"""Train the shapes zoo from scratch: ``python -m calibration.shapes.train --out DIR``.

Stages, in order: vae, text, clip, then one denoiser (with its text encoder) per model, large to tiny. Each
writes `DIR/training/<stage>.csv` (losses) and `<stage>.json` (steps, seconds, seed, versions), and its weights
into the folders that `from_pretrained` loads; a finished stage is not run again, one cut off starts anew.
The second process of a two-core machine can take other stages: ``--stages clip,shapes-medium``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.shapes import networks, save
from calibration.shapes.captions import (
    COLOURS,
    GRID,
    MAX_ITEMS,
    SHAPES,
    SIZES,
    Caption,
    compatible,
    draw,
    negatives,
)
from calibration.shapes.render import paint, place
from calibration.shapes.trainer import PLANS, SCENES, SEED, Trainer

UNCONDITIONAL: Final = 0.1  # share of captions that are left out, for classifier-free guidance
NEGATIVES: Final = 2  # wrong captions per picture in the contrastive batch
CLIP_SCALE: Final = 12.0  # upper bound of CLIP's logit scale: keeps the cosines of right and wrong far apart
#: What a noun's token is asked for: colour, shape, size or none, column and row counted from the first item.
NOUN: Final = (len(COLOURS), len(SHAPES), len(SIZES) + 1, 2 * GRID - 1, 2 * GRID - 1)


@dataclass(frozen=True, slots=True)
class Scenes:
    """Rendered captions: pictures uint8[N, 3, 32, 32], what stands where int64[N, 9, 3], and the captions."""

    captions: list[Caption]
    pictures: Tensor
    cells: Tensor

    @classmethod
    def draw(cls, number: int, seed: int) -> Scenes:
        """`number` scenes, classes 1..5 in turn."""
        rng = np.random.Generator(np.random.PCG64(seed))
        captions = [draw(i % MAX_ITEMS + 1, rng) for i in range(number)]
        pictures = np.empty((number, 32, 32, 3), np.uint8)
        cells = np.zeros((number, GRID * GRID, 3), np.int64)
        for i, caption in enumerate(captions):
            scene = place(caption, rng)
            pictures[i] = paint(scene, (-int(rng.random() * 2), -int(rng.random() * 2)))
            for (x, y), item in scene:
                looks = (COLOURS.index(item.colour), SHAPES.index(item.shape), SIZES.index(item.size or ""))
                cells[i, y * GRID + x] = np.array(looks) + 1
        return cls(captions, torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(cells))


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 to [-1, 1]"""
    return pictures.float() / 127.5 - 1


def token_ids(tokenizer: Any, texts: Iterable[str]) -> Tensor:
    return torch.tensor(tokenizer(list(texts), padding="max_length", max_length=networks.MAX_TOKENS).input_ids)


def pooled(output: Any) -> Tensor:
    """`get_*_features` of transformers 4 (a tensor) and 5 (a model output)."""
    return output if isinstance(output, Tensor) else output.pooler_output


def train_vae(out: Path, scenes: Scenes) -> None:
    vae = networks.make_vae()
    trainer = Trainer("vae", out, [vae], decay=0.99)
    pictures = scenes.pictures

    def loss_of(rows: Tensor) -> dict[str, Tensor]:
        x = to_unit(pictures[rows])
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator=trainer.rng)).sample
        error = y - x
        return {
            "reconstruction": error.abs().mean() + 4 * error.square().mean(),
            "kl": 3e-5 * posterior.kl().mean(),
        }

    def keep() -> None:
        with torch.no_grad():
            spread = vae.encode(to_unit(pictures[:512])).latent_dist.mean.std()
        vae.register_to_config(scaling_factor=round(1 / float(spread), 4))
        save.save_half(vae, out / "training" / "vae")

    trainer.run(loss_of, len(pictures), keep)


def train_clip(out: Path, scenes: Scenes) -> None:
    """Contrastive, with wrong captions among the candidates; a head reads the scene off either embedding.

    The head (dropped afterwards) is shared by both towers: it asks them for the same code of what stands where,
    which the contrastive loss alone is slow to find. Another one asks the text's inner layer about its nouns.
    """
    tokenizer = networks.make_tokenizer()
    clip = networks.make_clip(tokenizer)
    clip.logit_scale.data.fill_(np.log(10.0))
    sizes = (len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
    head = nn.Linear(128, GRID * GRID * sum(sizes))
    noun_head = nn.Linear(96, sum(NOUN))
    trainer = Trainer("clip", out, [clip, head, noun_head])
    nouns = noun_targets(scenes.captions)
    layer = clip.text_model.encoder.layers[-2]
    inner: list[Tensor] = []
    layer.register_forward_hook(lambda _m, _i, out: inner.append(out if isinstance(out, Tensor) else out[0]))
    dice = np.random.Generator(np.random.PCG64(SEED + 1))

    def embed_texts(texts: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings, and the inner states of the tokens, padded."""
        inner.clear()
        ids = token_ids(tokenizer, texts)
        lengths = (ids != tokenizer.pad_token_id).sum(1) + 1
        order = lengths.argsort()
        parts = [  # attention is causal: what comes after the end does not matter, so short texts cost less
            pooled(clip.get_text_features(input_ids=ids[part, : int(lengths[part].max())]))
            for part in order.chunk(6)
        ]
        states = [F.pad(part, (0, 0, 0, ids.shape[1] - part.shape[1])) for part in inner]
        back = order.argsort()
        return F.normalize(torch.cat(parts)[back], dim=-1), torch.cat(states)[back]

    def reading(embedding: Tensor, target: Tensor) -> Tensor:
        logits = head(10 * embedding).view(len(embedding), GRID * GRID, -1).split(sizes, dim=-1)
        there = target[..., 0] > 0
        what = F.cross_entropy(logits[0].flatten(0, 1), target[..., 0].flatten())
        looks = [F.cross_entropy(logits[k][there], target[..., k][there]) for k in (1, 2)]
        return what + 0.3 * (looks[0] + looks[1])

    def loss_of(rows: Tensor) -> dict[str, Tensor]:
        x = to_unit(scenes.pictures[rows])
        grain = torch.randn(x.shape, generator=trainer.rng)
        x = x + 0.15 * grain * torch.rand((len(x), 1, 1, 1), generator=trainer.rng)
        right = [scenes.captions[row] for row in rows.tolist()]
        wrong = [caption for one in right for caption in _some_negatives(one, dice)]
        texts, states = embed_texts([str(caption) for caption in (*right, *wrong)])
        mine, others = texts[: len(right)], texts[len(right) :].view(len(right), NEGATIVES, -1)
        pictures = F.normalize(pooled(clip.get_image_features(pixel_values=x)), dim=-1)
        scale = clip.logit_scale.exp().clamp(max=CLIP_SCALE)
        logits = scale * pictures @ mine.T
        logits = logits.masked_fill(_also_right(right, scenes.cells[rows]), -1e4)
        hard = scale * torch.einsum("bd,bkd->bk", pictures, others)
        index = torch.arange(len(right))
        contrast = F.cross_entropy(torch.cat([logits, hard], 1), index) + 0.5 * F.cross_entropy(logits.T, index)
        target = scenes.cells[rows]
        there = nouns[rows][..., 0] >= 0
        return {
            "contrast": contrast,
            "scene of picture": reading(pictures, target),
            "scene of text": reading(mine, target),
            "nouns": 0.2 * noun_error(noun_head(states[: len(right)][there]), nouns[rows][there]),
        }

    def keep() -> None:
        clip.logit_scale.data.clamp_(max=float(np.log(CLIP_SCALE)))
        save.save_clip(clip, out / "shapes-clip")

    trainer.run(loss_of, len(scenes.captions), keep)


def _also_right(captions: list[Caption], cells: Tensor) -> Tensor:
    """bool[B, B]: where the caption of another scene is right for this one too, so no wrong candidate."""
    alike = (cells[:, None, :, :2] == cells[None, :, :, :2]).all(-1).all(-1).fill_diagonal_(False)
    for one, other in alike.nonzero().tolist():
        alike[one, other] = compatible(captions[one], captions[other])
    return alike


def _some_negatives(caption: Caption, rng: np.random.Generator) -> list[Caption]:
    found = [wrong for _, wrong in negatives(caption, rng)]
    return [found.pop(int(rng.random() * len(found))) for _ in range(NEGATIVES)]


def noun_targets(captions: list[Caption]) -> Tensor:
    """int64[N, tokens, 5]: what :data:`NOUN` says at each noun, -100 elsewhere."""
    nouns = torch.full((len(captions), networks.MAX_TOKENS, len(NOUN)), -100)
    for i, caption in enumerate(captions):
        at = [position for position, word in enumerate(str(caption).split(), start=1) if word in SHAPES]
        (left, top), *_ = caption.cells
        for position, item, (x, y) in zip(at, caption.items, caption.cells, strict=True):
            size = SIZES.index(item.size) if item.size else len(SIZES)
            looks = (COLOURS.index(item.colour), SHAPES.index(item.shape), size)
            nouns[i, position] = torch.tensor([*looks, x - left + GRID - 1, y - top + GRID - 1])
    return nouns


def noun_error(logits: Tensor, target: Tensor) -> Tensor:
    parts = logits.split(NOUN, dim=-1)
    return torch.stack([F.cross_entropy(part, target[:, k]) for k, part in enumerate(parts)]).sum()


def train_text(out: Path, scenes: Scenes) -> None:
    """What the denoisers read: at each noun, the item and its cell counted from the first item's.

    Denoisers start from it, as those of Stable Diffusion start from CLIP's; alone they are slow to find it.
    """
    tokenizer = networks.make_tokenizer()
    encoder = networks.make_text_encoder(tokenizer)
    head = nn.Linear(networks.TEXT_WIDTH, sum(NOUN))
    trainer = Trainer("text", out, [encoder, head], decay=0.99)
    ids = token_ids(tokenizer, (str(caption) for caption in scenes.captions))
    nouns = noun_targets(scenes.captions)

    def loss_of(rows: Tensor) -> dict[str, Tensor]:
        there = nouns[rows][..., 0] >= 0
        logits = head(encoder(ids[rows]).last_hidden_state[there])
        return {"nouns": noun_error(logits, nouns[rows][there])}

    trainer.run(loss_of, len(ids), lambda: save.save_half(encoder, out / "training" / "text"))


def encode(out: Path, scenes: Scenes) -> Tensor:
    """Latents of all scenes, float32[N, 8, 8, 8], by the trained VAE."""
    vae = save.load_vae(out / "training" / "vae")
    with torch.no_grad():
        parts = [vae.encode(to_unit(part)).latent_dist.mean for part in scenes.pictures.split(256)]
    return torch.cat(parts) * vae.config.scaling_factor


def train_denoiser(stage: str, out: Path, scenes: Scenes) -> None:
    """The UNet and its text encoder together: velocity prediction, times spread evenly over each batch.

    A stage whose name ends with "+" goes on, with a fresh optimiser, from the weights that are there.
    """
    name = stage.rstrip("+")
    latents = encode(out, scenes)
    tokenizer = networks.make_tokenizer()
    ids = token_ids(tokenizer, (str(caption) for caption in scenes.captions))
    nothing = token_ids(tokenizer, [""])
    if stage == name:
        text_encoder, unet = save.load_text_encoder(out / "training" / "text"), networks.make_unet(name)
    else:
        text_encoder, unet = (
            save.load_text_encoder(out / name / "text_encoder"),
            save.load_unet(out / name / "unet"),
        )
    scheduler = networks.make_scheduler()
    trainer = Trainer(stage, out, [unet, text_encoder])
    steps = scheduler.config.num_train_timesteps

    def loss_of(rows: Tensor) -> dict[str, Tensor]:
        x = latents[rows]
        noise = torch.randn(x.shape, generator=trainer.rng)
        strata = torch.arange(len(x)) + torch.rand(len(x), generator=trainer.rng)
        times = (strata * steps / len(x)).long().clamp(max=steps - 1)
        dropped = torch.rand(len(x), generator=trainer.rng) < UNCONDITIONAL
        texts = text_encoder(torch.where(dropped[:, None], nothing, ids[rows])).last_hidden_state
        noisy = scheduler.add_noise(x, noise, times)
        velocity = unet(noisy, times, encoder_hidden_states=texts).sample
        return {"velocity": F.mse_loss(velocity, scheduler.get_velocity(x, noise, times))}

    def keep() -> None:
        vae = save.load_vae(out / "training" / "vae")
        save.save_pipeline(unet, text_encoder, vae, scheduler, out / name)

    trainer.run(loss_of, len(latents), keep)


def finished(stage: str, out: Path) -> bool:
    facts = out / "training" / f"{stage}.json"
    if not facts.is_file():
        return False
    told = json.loads(facts.read_text())
    return bool(told["steps"] == told["of_steps"])


def record(out: Path) -> None:
    """`training.json`: the facts of every stage that has run."""
    files = {stage: out / "training" / f"{stage}.json" for stage in PLANS}
    facts = {stage: json.loads(file.read_text()) for stage, file in files.items() if file.is_file()}
    (out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shapes zoo from scratch.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--stages", default=",".join(PLANS), help="which, separated by commas (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    scenes = Scenes.draw(SCENES, SEED)
    for stage in chosen.stages.split(","):
        if finished(stage, chosen.out):
            print(f"{stage}: finished before", file=sys.stderr)
            continue
        torch.manual_seed(SEED)
        if stage == "vae":
            train_vae(chosen.out, scenes)
        elif stage == "text":
            train_text(chosen.out, scenes)
        elif stage == "clip":
            train_clip(chosen.out, scenes)
        else:
            train_denoiser(stage, chosen.out, scenes)
    record(chosen.out)


if __name__ == "__main__":
    main()
