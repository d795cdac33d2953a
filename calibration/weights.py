"""Where the weights of a model are, how they get here, and which files a load of them reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from argus_sim.errors import InputError
from calibration.failures import first_line
from calibration.zoo import ZooModel

Origin = Literal["folder", "cache", "hub", "random"]

#: Parts of a pipeline that are none of what is measured: they are neither fetched nor loaded.
NOT_LOADED: Final = ("safety_checker", "feature_extractor", "image_encoder")
_WITHOUT_WEIGHTS: Final = ("tokenizer", "scheduler")
_FILE: Final = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?P<variant>\.fp16)?(?:-\d{5}-of-(?P<shards>\d{5}))?"
    r"(?P<old_variant>\.fp16)?\.(?P<ending>safetensors|bin)"
)

#: Blocks of a file of weights that are read to tell it from others.
_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the weights of a model are.

    Attributes:
        origin: A local ``folder``, the hub's ``cache``, the ``hub`` (not all of it is here), or ``random``.
        path: The pipeline's folder; its repository on the hub; "" for random ones.
        denoiser: File of the denoiser that replaces the one of the folder, "" for none.
    """

    origin: Origin
    path: str
    denoiser: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a load reads.

    Attributes:
        variant: Which of a repository's files, "fp16" or None for those without a variant in their name.
        files: Of weights; all else is small.
    """

    variant: str | None
    files: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def locate(
    entry: ZooModel,
    *,
    random_weights: bool = False,
    online: bool | None = None,
    remark: Callable[[str], None] = lambda text: None,
) -> Weights | None:
    """Find a model's weights: its folder, the hub's cache, the hub; None where they are not to be had.

    Args:
        entry: The model.
        random_weights: Build it from its architecture instead.
        online: Whether to ask the hub; by default unless ``HF_HUB_OFFLINE`` says no.
        remark: Hears why, where something can be done about it.
    """
    if entry.folder is not None:
        there = (entry.folder / "model_index.json").is_file()
        return Weights("folder", str(entry.folder)) if there else None
    if random_weights:
        return Weights("random", "")
    cached = _in_cache(entry)
    if cached is not None:
        return cached
    if online is None:
        online = os.environ.get("HF_HUB_OFFLINE", "").lower() not in ("1", "true", "yes", "on")
    if not online:
        return None
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    asked = [(entry.hub_id, entry.revision)] + ([(entry.denoiser_file[0], "main")] if entry.denoiser_file else [])
    for repository, revision in asked:
        try:
            hub.model_info(repository, revision=revision, timeout=5.0)
            hub.auth_check(repository)  # of a gated repository, everybody may read what it is
        except huggingface_hub.errors.GatedRepoError:
            remark(
                f"{entry.name}: {repository} asks to accept its licence first, on its page, and to be logged in"
            )
            return None
        except Exception:  # whatever keeps us from it, the answer is the same: not to be had
            return None
    return Weights("hub", entry.hub_id)


def fetch(entry: ZooModel, weights: Weights, *, dtype: str) -> Weights:
    """Bring here what is on the hub, so that a load reads files and nothing else.

    Raises:
        InputError: It cannot be downloaded.
    """
    if weights.origin != "hub":
        return weights
    import diffusers
    import huggingface_hub

    without = dict.fromkeys((*NOT_LOADED, "unet") if entry.denoiser_file else NOT_LOADED)
    why = "files of a component are missing there"
    try:
        if entry.denoiser_file is not None:
            huggingface_hub.hf_hub_download(*entry.denoiser_file)
        for variant in ("fp16", None) if dtype == "fp16" else (None, "fp16"):
            try:
                diffusers.DiffusionPipeline.download(
                    entry.hub_id, revision=entry.revision, variant=variant, **without
                )
            except ValueError as error:
                if isinstance(error, OSError):  # what the hub raises is both
                    raise
                continue  # there are no files of this variant
            found = _in_cache(entry)
            if found is not None:
                return found
    except Exception as error:
        why = first_line(error)
    raise InputError(f"the weights of {entry.name!r} cannot be downloaded: {why}", where=entry.hub_id)


def reading(weights: Weights, dtype: str) -> Reading:
    """Which files a load reads: those of half precision where that is wanted, or where there are no others."""
    folder = Path(weights.path)
    choices = [_choices(folder / part) for part, has in parts(folder, weights.denoiser).items() if has]
    half = any("fp16" in choice and (dtype == "fp16" or "" not in choice) for choice in choices)
    files = [file for choice in choices for file in choice.get("fp16" if half and "fp16" in choice else "", ())]
    if weights.denoiser:
        files.append(Path(weights.denoiser))
    return Reading("fp16" if half else None, tuple(files))


def fingerprint(weights: Weights, dtype: str) -> str | None:
    """What tells the weights that a load reads from others, wherever they lie; None of what is not in files here.

    Names and sizes are alike in all that was trained from one architecture, and times change in a copy. So some
    blocks of each file are read, spread evenly: other training leaves next to none as it was.
    """
    if weights.origin not in ("folder", "cache"):
        return None
    digest = hashlib.sha256()
    try:
        for file in sorted(reading(weights, dtype).files):
            size = file.stat().st_size
            digest.update(f"{file.parent.name}/{file.name} {size}\0".encode())
            with file.open("rb", buffering=0) as opened:
                for number in range(_SAMPLES):
                    opened.seek(max(size - _SAMPLE_BYTES, 0) * number // (_SAMPLES - 1))
                    digest.update(opened.read(_SAMPLE_BYTES))
    except (OSError, ValueError):  # no pipeline, or not any more: loading it says so
        return None
    return digest.hexdigest()[:16]


def parts(folder: Path, denoiser: str = "") -> dict[str, bool]:
    """Component of a pipeline's folder that is loaded from there -> whether it has weights."""
    index: dict[str, Any] = json.loads((folder / "model_index.json").read_text("utf-8"))
    return {
        name: not name.startswith(_WITHOUT_WEIGHTS)
        for name, value in index.items()
        if isinstance(value, list) and value[0] is not None and not name.startswith("_")
        if name not in NOT_LOADED and not (denoiser and name == "unet")
    }


def _in_cache(entry: ZooModel) -> Weights | None:
    """The hub's cache, where it holds every file that is needed."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(entry.hub_id, "model_index.json", revision=entry.revision)
    denoiser: Any = ""
    if entry.denoiser_file is not None:
        denoiser = try_to_load_from_cache(*entry.denoiser_file)
    if not isinstance(index, str) or not isinstance(denoiser, str):
        return None
    folder = Path(index).parent
    return Weights("cache", str(folder), denoiser) if _whole(folder, denoiser) else None


def _whole(folder: Path, denoiser: str) -> bool:
    for part, has_weights in parts(folder, denoiser).items():
        inside = folder / part
        if not inside.is_dir() or not any(inside.iterdir()):
            return False
        if has_weights and not ((inside / "config.json").is_file() and _choices(inside)):
            return False
    return True


def _choices(folder: Path) -> dict[str, list[Path]]:
    """Variant ("" for none) -> a component's files of weights, where all of them are there."""
    found: dict[tuple[bool, int, str], list[Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _FILE.fullmatch(file.name)
        if match and file.is_file():
            variant = "fp16" if match["variant"] or match["old_variant"] else ""
            found.setdefault((match["ending"] == "bin", int(match["shards"] or 1), variant), []).append(file)
    out: dict[str, list[Path]] = {}
    for (_, shards, variant), files in sorted(found.items()):  # safetensors before pickles, as diffusers does
        if len(files) == shards:
            out.setdefault(variant, files)
    return out
