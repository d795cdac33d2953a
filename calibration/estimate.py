"""How long a denoising step may take, before any weights are loaded: work counted without data, over speed."""

from __future__ import annotations

import json
import time
from typing import Any

from argus_sim.errors import InputError
from calibration.failures import first_line, is_out_of_memory
from calibration.pipelines import build_component, need_torch, torch_dtype
from calibration.zoo import ZooModel

#: Share of a large matrix product's speed that a denoiser reaches; convolutions and attention are slower.
_EFFICIENCY = 0.4
_GPU_SIDE = 4096  # of the probe's matrices on a GPU
_OVERHEAD_S = 0.004  # of a step whose work is negligible: Python and launches


def step_seconds(entry: ZooModel, *, device: str, dtype: str, flops_per_s: float) -> float:
    """Seconds of one denoising step of one image (both passes where there is guidance); a rough guess."""
    return step_flops(entry) / (flops_per_s * _EFFICIENCY) + _OVERHEAD_S


def device_flops_per_s(device: str, dtype: str) -> float:
    """Speed of a matrix product: a fraction of a second's probe.

    Raises:
        InputError: The device has no room for two matrices.
    """
    torch = need_torch()
    side = _GPU_SIDE if device.startswith("cuda") else 512
    best = float("inf")
    try:
        a = torch.randn(side, side, device=device, dtype=torch_dtype(dtype))
        for _ in range(5):
            start = time.perf_counter()
            b = a @ a
            float(b[0, 0])  # waits for the device
            best = min(best, time.perf_counter() - start)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{device} has no memory left, even for a probe: {first_line(error)}") from None
    return float(2.0 * side**3 / best)


def step_flops(entry: ZooModel) -> float:
    """Floating-point operations of one denoising step of one image, counted by running it without data."""
    torch = need_torch()
    from torch.utils.flop_counter import FlopCounterMode

    network, side = _on_meta(entry)
    passes = 2 if entry.guidance > 1.0 else 1
    config = network.config
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        if hasattr(config, "cross_attention_dim") and hasattr(config, "down_block_types"):
            network(**_unet_inputs(torch, config, side, passes))
        else:
            network(**_transformer_inputs(torch, config, side, passes))
    return float(counter.get_total_flops())


def _on_meta(entry: ZooModel) -> tuple[Any, int]:
    """The denoiser without data, and the side of its latents."""
    if entry.components:
        part = "unet" if "unet" in entry.components else "transformer"
        return build_component(entry, part, device="meta", dtype="fp32"), max(entry.resolution, 64) // 8
    torch = need_torch()
    import diffusers

    assert entry.folder is not None
    part = "unet" if (entry.folder / "unet").is_dir() else "transformer"
    config = json.loads((entry.folder / part / "config.json").read_text("utf-8"))
    with torch.device("meta"):
        network = getattr(diffusers, config["_class_name"]).from_config(config)
    return network, int(network.config.sample_size)


def _unet_inputs(torch: Any, config: Any, side: int, passes: int) -> dict[str, Any]:
    inputs = {
        "sample": torch.empty(passes, config.in_channels, side, side),
        "timestep": torch.empty(passes),
        "encoder_hidden_states": torch.empty(passes, 77, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.empty(passes, pooled),
            "time_ids": torch.empty(passes, 6),
        }
    return inputs


def _transformer_inputs(torch: Any, config: Any, side: int, passes: int) -> dict[str, Any]:
    if hasattr(config, "caption_channels"):  # PixArt
        return {
            "hidden_states": torch.empty(passes, config.in_channels, side, side),
            "encoder_hidden_states": torch.empty(passes, 300, config.caption_channels),
            "timestep": torch.empty(passes),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    if hasattr(config, "axes_dims_rope"):  # FLUX: latents are packed 2 x 2
        tokens = (side // 2) ** 2
        return {
            "hidden_states": torch.empty(passes, tokens, config.in_channels),
            "encoder_hidden_states": torch.empty(passes, 256, config.joint_attention_dim),
            "pooled_projections": torch.empty(passes, config.pooled_projection_dim),
            "timestep": torch.empty(passes),
            "img_ids": torch.empty(tokens, 3),
            "txt_ids": torch.empty(256, 3),
        }
    return {
        "hidden_states": torch.empty(passes, config.in_channels, side, side),
        "encoder_hidden_states": torch.empty(passes, 333, config.joint_attention_dim),
        "pooled_projections": torch.empty(passes, config.pooled_projection_dim),
        "timestep": torch.empty(passes),
    }
