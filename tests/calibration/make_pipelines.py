"""Tiny pipelines and scorers with random weights, in the folder formats of the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.pipelines import stand_in_tokenizer
from calibration.zoo import ZooModel, select

WORDS = 514

#: What makes of the architecture of a Stable Diffusion one that a test can run.
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [8, 8], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
             "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 2,
             "norm_num_groups": 4, "cross_attention_dim": 16},
    "vae": {"block_out_channels": [8, 8], "norm_num_groups": 4,
            "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2},
    "text_encoder": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                     "num_attention_heads": 2},
}  # fmt: skip

_T5: dict[str, Any] = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
_CLIP, _VAE = SMALL["text_encoder"], SMALL["vae"]
#: The same for one model of every kind of pipeline: what of its components' architectures is made small.
SMALL_OF: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": SMALL,
    "sd-turbo": SMALL,
    "lcm": {**SMALL, "unet": {**SMALL["unet"], "time_cond_proj_dim": 8}},
    "sdxl": {
        "unet": {**SMALL["unet"], "cross_attention_dim": 32, "attention_head_dim": [2, 2],
                 "transformer_layers_per_block": [1, 1], "addition_time_embed_dim": 8,
                 "projection_class_embeddings_input_dim": 64},
        "vae": _VAE, "text_encoder": _CLIP, "text_encoder_2": {**_CLIP, "projection_dim": 16},
    },
    "pixart-sigma": {
        "transformer": {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1,
                        "cross_attention_dim": 16, "caption_channels": 16, "sample_size": 16},
        "vae": _VAE, "text_encoder": _T5,
    },
    "sd35-medium": {
        "transformer": {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
                        "joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 32,
                        "pos_embed_max_size": 16, "dual_attention_layers": [0], "sample_size": 16},
        "vae": _VAE, "text_encoder": {**_CLIP, "projection_dim": 16},
        "text_encoder_2": {**_CLIP, "projection_dim": 16}, "text_encoder_3": {**_T5, "d_model": 32},
    },
    "flux-schnell": {
        "transformer": {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
                        "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16,
                        "axes_dims_rope": [2, 2, 4]},
        "vae": _VAE, "text_encoder": _CLIP, "text_encoder_2": _T5,
    },
}  # fmt: skip


def entry_of(folder: Path) -> ZooModel:
    """The zoo's entry of a folder of weights, called ``mine``."""
    return select("sd", [f"mine={folder}"])[0]


def tiny_clip_text(projected: bool = False) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=16, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return cls(config).eval()


def tiny_vae() -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def tiny_sd(*, width: int = 16, seed: int = 0) -> Any:
    """A StableDiffusionPipeline of 16 x 16 pixels."""
    import diffusers
    import torch

    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(width, width), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=tiny_vae(), text_encoder=tiny_clip_text(), tokenizer=stand_in_tokenizer("CLIPTextModel"), unet=unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sdxl(*, seed: int = 0) -> Any:
    """A StableDiffusionXLPipeline of 16 x 16 pixels with an Euler scheduler."""
    import diffusers
    import torch

    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=(2, 4), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
    ).eval()  # fmt: skip
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(), text_encoder=tiny_clip_text(), text_encoder_2=tiny_clip_text(projected=True),
        tokenizer=stand_in_tokenizer("CLIPTextModel"), tokenizer_2=stand_in_tokenizer("CLIPTextModel"), unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
        ),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_scorer(folder: Path, *, seed: int = 0) -> Path:
    """A CLIPModel with its processor in a folder: the format of CLIP and of PickScore."""
    import torch
    import transformers

    torch.manual_seed(seed)
    text = {
        "vocab_size": 49408, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    )
    with torch.no_grad():  # so that every score is above 0, as with a trained one
        model.text_model.final_layer_norm.bias += 3.0
        model.vision_model.post_layernorm.bias += 3.0
        for projection in (model.text_projection, model.visual_projection):
            projection.weight.copy_(projection.weight.abs())
    model.save_pretrained(folder)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.CLIPProcessor(images, stand_in_tokenizer("CLIPTextModel")).save_pretrained(folder)
    return folder
