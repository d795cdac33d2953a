"""Writing and reading the folders of the shapes zoo: half precision on disk, single precision once loaded."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextModel

from calibration.shapes import networks
from calibration.shapes.render import RESOLUTION


def versions() -> dict[str, str]:
    return {package: version(package) for package in ("torch", "diffusers", "transformers", "numpy")}


def save_half(module: Any, folder: Path) -> None:
    """`save_pretrained`, then every tensor as float16; the configuration keeps saying float32."""
    module.save_pretrained(folder)
    halve(folder)


def halve(folder: Path) -> None:
    """Rewrite all weights below a folder as float16."""
    for file in sorted(folder.rglob("*.safetensors")):
        tensors = {
            key: tensor.half() if tensor.is_floating_point() else tensor
            for key, tensor in load_file(file).items()
        }
        save_file(tensors, file, metadata={"format": "pt"})


def load_vae(folder: Path) -> AutoencoderKL:
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False)


def load_text_encoder(folder: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(folder, torch_dtype=torch.float32).train()


def load_unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32).train()


def save_pipeline(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    scheduler: DDIMScheduler,
    folder: Path,
) -> None:
    """The folder that `StableDiffusionPipeline.from_pretrained` loads; there whole or as it was before."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=networks.make_tokenizer(),  # a fresh one: padding set by a call would be saved
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    _save_vocabulary(fresh / "tokenizer")
    _finish(fresh, folder)


def save_clip(clip: CLIPModel, folder: Path) -> None:
    """The folder that `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` load."""
    images = CLIPImageProcessor(
        size={"shortest_edge": RESOLUTION},
        crop_size={"height": RESOLUTION, "width": RESOLUTION},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    clip.save_pretrained(fresh)
    CLIPProcessor(image_processor=images, tokenizer=networks.make_tokenizer()).save_pretrained(fresh)
    _save_vocabulary(fresh)
    _finish(fresh, folder)


def _save_vocabulary(folder: Path) -> None:
    """The two files that transformers 4 reads; transformers 5 writes and reads tokenizer.json."""
    vocabulary, merges = networks.bpe()
    (folder / "vocab.json").write_text(json.dumps(vocabulary) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def _finish(fresh: Path, folder: Path) -> None:
    halve(fresh)
    for file in fresh.rglob("*.json"):  # no trace of the machine that trained
        text = json.loads(file.read_text())
        if isinstance(text, dict) and "_name_or_path" in text:
            del text["_name_or_path"]
            file.write_text(json.dumps(text, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
