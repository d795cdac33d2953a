"""From zoo entries to diffusers pipelines: weights that are here, random ones, or none at all (the meta device).

Imports torch and diffusers when a function is called, not before.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Final

from argus_sim.errors import InputError
from calibration.failures import first_line, is_out_of_memory
from calibration.weights import NOT_LOADED, Weights, locate, reading
from calibration.zoo import ZooModel, published_range

#: ``half`` is the half precision that each model is made for.
DTYPES: Final = ("half", "fp16", "bf16", "fp32")


def need_torch() -> Any:
    """The torch module. Raises InputError where what the harness needs is not installed."""
    try:
        import diffusers
        import torch
        import torchmetrics
        import transformers
    except ImportError as error:
        raise InputError(
            f"this needs the packages of the calibrate extra, and {error.name!r} is missing:"
            " pip install 'argus-sim[calibrate]'"
        ) from None
    for library in (diffusers, transformers):
        logging: Any = library.utils.logging
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    del torchmetrics
    return torch


def torch_dtype(name: str) -> Any:
    """The torch.dtype of one of :data:`DTYPES`; of ``half`` that of most models."""
    torch = need_torch()
    return {"half": torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]


def precision(entry: ZooModel, dtype: str, device: str) -> str:
    """What a model is run in: where ``half`` is wished for, its own; ``fp16`` on a GPU that has no bf16."""
    if dtype != "half":
        return dtype
    if entry.half == "bf16" and device.startswith("cuda"):
        cuda = need_torch().cuda
        return "bf16" if cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return entry.half


def load(entry: ZooModel, weights: Weights, *, device: str, dtype: str, seed: int = 0) -> Any:
    """A pipeline on the device, ready to run.

    Raises:
        InputError: The weights are there but cannot be read.
    """
    torch = need_torch()
    dtype = precision(entry, dtype, device)
    if weights.origin == "cache" and not Path(weights.path).is_dir():  # it was found on another machine
        weights = locate(entry, online=False) or weights
    pipe = build_random(entry, device=device, dtype=dtype, seed=seed) if weights.origin == "random" else None
    if pipe is None:
        pipe = _from_pretrained(entry, weights, dtype).to(device)
    if dtype == "fp16" and type(pipe).__name__.startswith("PixArt") and pipe.vae.config.force_upcast:
        pipe.vae.to(torch.float32)  # it overflows in fp16, and this pipeline does not see to it as SDXL's does
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _from_pretrained(entry: ZooModel, weights: Weights, dtype: str) -> Any:
    import diffusers

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # newer versions call it dtype, older ones do not know that
            pipe = diffusers.DiffusionPipeline.from_pretrained(weights.path, **_options(entry, weights, dtype))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"the weights of {entry.name!r} cannot be loaded: {first_line(error)}", where=weights.path
        ) from None
    if weights.denoiser:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **dict(entry.scheduler_config))
    wanted = getattr(diffusers, entry.scheduler) if entry.scheduler else type(pipe.scheduler)
    if type(pipe.scheduler) is not wanted:
        # The parameters of another class do not say all that this one asks for: DDIM clips unless it is told.
        pipe.scheduler = wanted.from_config(pipe.scheduler.config, **dict(entry.scheduler_config))
    return pipe


def _options(entry: ZooModel, weights: Weights, dtype: str) -> dict[str, Any]:
    """What ``from_pretrained`` is told: to read no more than what is run."""
    options: dict[str, Any] = {"torch_dtype": torch_dtype(dtype), "local_files_only": True}
    variant = reading(weights, dtype).variant
    if variant is not None:
        options["variant"] = variant
    index = json.loads((Path(weights.path) / "model_index.json").read_text("utf-8"))
    options |= {part: None for part in NOT_LOADED if (index.get(part) or [None])[0] is not None}
    if "safety_checker" in index:
        options["requires_safety_checker"] = False
    if str(index["_class_name"]).startswith("StableDiffusionXL"):
        options["add_watermarker"] = False
    if weights.denoiser:
        from safetensors.torch import load_file

        # Its own weights are put in place of none at all, not of the pipeline's.
        options["unet"] = build_component(entry, "unet", device="meta", dtype=dtype)
        options["unet"].load_state_dict(load_file(weights.denoiser), assign=True)
        options["unet"].to(torch_dtype(dtype))
    return options


def build_component(entry: ZooModel, component: str, *, device: str, dtype: str) -> Any:
    """One component with freshly initialised weights, of exactly the architecture its file describes."""
    torch = need_torch()
    import diffusers
    import transformers

    config = entry.architecture(component)
    name = config.pop("_class_name")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch_dtype(dtype))
    try:
        with torch.device(device):
            if hasattr(diffusers, name):
                part = getattr(diffusers, name).from_config(config)
            else:
                cls = getattr(transformers, name)
                part = cls(cls.config_class(**config))
    finally:
        torch.set_default_dtype(before)
    part = part.to(torch_dtype(dtype)).eval().requires_grad_(False)
    if dtype == "fp16":  # what from_pretrained leaves in fp32: T5's output projections
        for wide in getattr(part, "_keep_in_fp32_modules", None) or ():
            for path, module in part.named_modules():
                if path.rpartition(".")[2] == wide:
                    module.float()
    return part


def build_random(entry: ZooModel, *, device: str, dtype: str, seed: int = 0) -> Any:
    """A pipeline with random weights: the same work per image as with trained ones, and images of noise."""
    torch = need_torch()
    import diffusers

    if not entry.components:
        raise InputError(f"{entry.name!r} is defined by its weights: random ones make no sense", where="--models")
    torch.manual_seed(seed)
    parts: dict[str, Any] = {
        name: build_component(entry, name, device=device, dtype=dtype) for name in entry.components
    }
    for name in list(parts):
        if name.startswith("text_encoder"):
            kind = entry.architecture(name)["_class_name"]
            parts[name.replace("text_encoder", "tokenizer")] = stand_in_tokenizer(kind)
    parts["scheduler"] = getattr(diffusers, entry.scheduler)(**entry.scheduler_config)
    if entry.pipeline == "StableDiffusionPipeline":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if entry.pipeline == "StableDiffusionXLPipeline":
        parts["add_watermarker"] = False  # takes time, and is on or off by what else is installed
    pipe = getattr(diffusers, entry.pipeline)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stand_in_tokenizer(encoder_class: str) -> Any:
    """A tokenizer of the right kind that knows bytes only: prompts are padded to full length anyway."""
    import transformers

    if encoder_class == "T5EncoderModel":
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
        pieces += [(chr(code), -2.0) for code in range(33, 127)]
        return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) if b in visible else chr(256 + b) for b in range(256)]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    vocab = {word: i for i, word in enumerate(words)} | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def count_parameters(entry: ZooModel) -> dict[str, int]:
    """Component -> number of weights, counted on the meta device: no memory, no download.

    Stored buffers count, as they do in the size of a weights file.
    """
    if not entry.components:
        return _count_files(entry)
    counts = {}
    for name in entry.components:
        part = build_component(entry, name, device="meta", dtype="fp32")
        stored = {id(tensor): tensor.numel() for tensor in part.state_dict(keep_vars=True).values()}
        counts[name] = sum(stored.values())  # a tensor with two names is one
    return counts


def _count_files(entry: ZooModel) -> dict[str, int]:
    need_torch()
    from safetensors import safe_open

    counts: dict[str, int] = {}
    assert entry.folder is not None
    for file in sorted(entry.folder.glob("*/*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            size = 0
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                shape = tensors.get_slice(key).get_shape()
                number = 1
                for side in shape:
                    number *= side
                size += number
        counts[file.parent.name] = counts.get(file.parent.name, 0) + size
    if not counts:
        raise InputError(f"{str(entry.folder)!r} holds no weights as .safetensors", where="--models")
    return counts


def check_parameters(entry: ZooModel) -> list[tuple[str, int, str, bool | None]]:
    """``(component, counted, published, agree)`` for every component; "" and None where no size was published."""
    rows: list[tuple[str, int, str, bool | None]] = []
    for component, counted in count_parameters(entry).items():
        text = entry.published.get(component, "")
        low, high = published_range(text) if text else (0, 0)
        rows.append((component, counted, text, low <= counted <= high if text else None))
    return rows


def default_side(entry: ZooModel, pipe: Any) -> int:
    """Side of the images in pixels: the zoo's, or what the weights' configuration implies."""
    if entry.resolution:
        return entry.resolution
    return int(denoiser(pipe).config.sample_size) * int(pipe.vae_scale_factor)


def denoiser(pipe: Any) -> Any:
    """The network that is run once per step."""
    return pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer


def modules(pipe: Any) -> dict[str, Any]:
    """Component -> torch module of everything that has weights."""
    torch = need_torch()
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def weight_bytes(pipe: Any) -> int:
    """Bytes of all weights and buffers."""
    tensors = [t for part in modules(pipe).values() for t in (*part.parameters(), *part.buffers())]
    return sum(t.numel() * t.element_size() for t in tensors)
