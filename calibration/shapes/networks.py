"""The networks of the shapes zoo, built from their configurations: tokenizer, VAE, text encoder, UNets, CLIP."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from calibration.shapes.captions import COLOURS, RELATIONS, SHAPES, SIZES
from calibration.shapes.render import RESOLUTION

MAX_TOKENS: Final = 32
LATENT_CHANNELS: Final = 8
LATENT_SIZE: Final = RESOLUTION // 4
TEXT_WIDTH: Final = 64
END: Final = "</w>"


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of a UNet. `down` and `up` say which levels, outermost first, attend to the text on either way."""

    channels: tuple[int, ...]
    layers: int
    down: tuple[bool, ...]
    up: tuple[bool, ...]
    middle: str | None


UNETS: Final = {
    "shapes-large": Shape((48, 64), 2, (True, True), (True, True), "UNetMidBlock2DCrossAttn"),
    "shapes-medium": Shape((48, 48), 1, (True, True), (True, True), "UNetMidBlock2DCrossAttn"),
    "shapes-small": Shape((32, 48), 1, (False, True), (False, True), "UNetMidBlock2D"),
    "shapes-tiny": Shape((24,), 1, (True,), (False,), None),
}


def words() -> list[str]:
    """Every word of the grammar."""
    relations = {word for relation in RELATIONS for word in relation.split()}
    return sorted({"a", *SIZES, *COLOURS, *SHAPES, *relations})


def _merges(corpus: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word is one token."""
    pieces = [[*word[:-1], word[-1] + END] for word in corpus]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in pieces for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in pieces:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = ["".join(best)]
                at += 1
    return merges


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of ours."""
    vocabulary, merges = bpe()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges: words of the grammar are one token each, other words fall to letters."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = _merges(words())
    tokens = [*letters, *(letter + END for letter in letters), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def _text_config(tokenizer: CLIPTokenizer, width: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_act": "gelu",
    }


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**_text_config(tokenizer, TEXT_WIDTH, 2)))


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    vision = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": RESOLUTION,
        "patch_size": 4,
        "hidden_act": "gelu",
    }
    text = _text_config(tokenizer, 96, 3)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
    return CLIPModel(config)


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )


def make_unet(name: str) -> UNet2DConditionModel:
    shape = UNETS[name]
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in shape.down),
        up_block_types=tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in shape.up[::-1]),
        mid_block_type=shape.middle,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def make_scheduler() -> DDIMScheduler:
    """Velocity prediction, noise that ends in pure noise: few steps stay sound."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )
