"""Which files of weights there are, which are read, how they get here, and that the disk is what is timed."""

from __future__ import annotations

import functools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argus_sim.errors import InputError
from calibration import loads, page_cache, pipelines
from calibration.approximations import Run
from calibration.latency import Workload
from calibration.weights import Weights, fetch, fingerprint, locate, parts, reading
from calibration.zoo import ZooModel, select

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from tests.calibration.make_pipelines import entry_of, tiny_sd, tiny_sdxl  # noqa: E402


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "plain"
    tiny_sd().save_pretrained(path)
    return path


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "mine"))


def image(pipe: Any) -> Any:
    return Workload(pipe, device="cpu", steps=2, guidance=3.0, side=16).call(Run(2), ["a fox"], [0])


# ---- which files


def test_half_precision_is_read_where_it_is_wanted_or_all_there_is(folder: Path) -> None:
    tiny_sd().to(torch.float16).save_pretrained(folder, variant="fp16")
    weights = Weights("folder", str(folder))
    (folder / "whole_model.safetensors").write_bytes(b"a repository holds more than is read")
    half, full = reading(weights, "fp16"), reading(weights, "fp32")
    assert (half.variant, full.variant) == ("fp16", None)
    assert len(half.files) == len(full.files) == 3
    assert all(".fp16." in file.name for file in half.files)
    assert full.bytes > 1.5 * half.bytes
    for file in full.files:
        file.unlink()
    assert reading(weights, "fp32") == half
    pipe = pipelines.load(entry_of(folder), weights, device="cpu", dtype="fp32")
    assert pipe.unet.dtype == torch.float32


def test_the_safety_checker_is_not_even_looked_for(folder: Path) -> None:
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    file.write_text(json.dumps(index))
    assert "safety_checker" not in parts(folder)
    pipe = pipelines.load(entry_of(folder), Weights("folder", str(folder)), device="cpu", dtype="fp32")
    assert pipe.safety_checker is None
    assert np.array_equal(image(pipe), image(tiny_sd()))


def test_another_denoiser_is_loaded_in_place_of_the_pipelines(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    other = tiny_sd(seed=5)
    file = folder / "other.safetensors"
    save_file(other.unet.state_dict(), str(file))
    shutil.rmtree(folder / "unet")  # not read, so not missed
    monkeypatch.setattr(ZooModel, "architecture", lambda self, part: {
        **other.unet.config, "_class_name": "UNet2DConditionModel",
    })  # fmt: skip
    entry = replace(entry_of(folder), components={"unet": "any"}, denoiser_file=("them", "other.safetensors"))
    weights = Weights("cache", str(folder), str(file))
    assert file in reading(weights, "fp32").files
    pipe = pipelines.load(entry, weights, device="cpu", dtype="fp32")
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), other.unet.parameters(), strict=True))
    assert np.isfinite(image(pipe)).all()


def test_sdxl_puts_no_watermark_whatever_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    tiny_sdxl().save_pretrained(tmp_path / "xl")
    told = []
    init = diffusers.StableDiffusionXLPipeline.__init__

    @functools.wraps(init)
    def watched(self: Any, *args: Any, add_watermarker: Any = None, **options: Any) -> None:
        told.append(add_watermarker)
        init(self, *args, add_watermarker=add_watermarker, **options)

    monkeypatch.setattr(diffusers.StableDiffusionXLPipeline, "__init__", watched)
    entry = replace(entry_of(tmp_path / "xl"), scheduler="")
    pipelines.load(entry, Weights("folder", str(tmp_path / "xl")), device="cpu", dtype="fp32")
    assert told == [False]


def test_weights_are_told_apart_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    ours = fingerprint(Weights("folder", str(folder)), "fp32")
    assert ours is not None
    moved = Path(shutil.copytree(folder, tmp_path / "moved", copy_function=shutil.copyfile))
    assert fingerprint(Weights("cache", str(moved)), "fp32") == ours
    tiny_sd(seed=1).save_pretrained(tmp_path / "other")
    assert fingerprint(Weights("folder", str(tmp_path / "other")), "fp32") != ours
    assert fingerprint(Weights("hub", "a/b"), "fp32") is fingerprint(Weights("random", ""), "fp32") is None


def test_a_model_is_in_one_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--weights: .*none of the models: sdxl, sd15"):
        select("sd", ("sdxl", "sd15"), tmp_path)
    folder.rename(tmp_path / "sdxl")
    assert [entry.folder for entry in select("sd", ("sdxl", "sd15"), tmp_path)] == [tmp_path / "sdxl", None]
    own = Path(shutil.copytree(tmp_path / "sdxl", tmp_path / "own"))
    with pytest.raises(InputError, match=r"'sdxl' is named with a folder, '.*own', and is in '.*' too"):
        select("sd", (f"sdxl={own}",), tmp_path)


# ---- the hub and its cache


@pytest.fixture
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache holds this folder as SDXL's, whole or in part."""
    import huggingface_hub

    def find(repository: str, name: str, **options: Any) -> str | None:
        return str(folder / name) if (folder / name).is_file() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", find)
    return folder


SDXL = select("sd", ["sdxl"])[0]
LIGHTNING = select("sd", ["sdxl-lightning"])[0]


def test_a_whole_cache_needs_no_hub(cache: Path) -> None:
    assert locate(SDXL, online=False) == Weights("cache", str(cache))


def test_a_cache_that_another_machine_has_elsewhere_is_looked_for_here(cache: Path) -> None:
    weights = Weights("cache", "/their/home/cache/snapshots/main")
    pipe = pipelines.load(replace(SDXL, scheduler=""), weights, device="cpu", dtype="fp32")
    assert np.array_equal(image(pipe), image(tiny_sd()))


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "tokenizer"]
)
def test_a_cache_in_part_is_none(cache: Path, name: str) -> None:
    path = cache / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert locate(SDXL, online=False) is None


def test_of_several_files_all_must_be_there(cache: Path) -> None:
    unet = cache / "unet"
    whole = unet / "diffusion_pytorch_model.safetensors"
    whole.rename(unet / "diffusion_pytorch_model-00001-of-00002.safetensors")
    assert locate(SDXL, online=False) is None
    (unet / "diffusion_pytorch_model-00002-of-00002.safetensors").write_bytes(b"")
    assert locate(SDXL, online=False) is not None


def test_the_base_of_lightning_is_not_lightning(cache: Path) -> None:
    assert locate(LIGHTNING, online=False) is None
    assert LIGHTNING.denoiser_file is not None
    file = cache / LIGHTNING.denoiser_file[1]
    file.write_bytes(b"")
    shutil.rmtree(cache / "unet")  # the one of SDXL is not needed
    assert locate(LIGHTNING, online=False) == Weights("cache", str(cache), str(file))


def test_the_rest_is_fetched_before_anything_is_timed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    file = cache / "unet" / "diffusion_pytorch_model.safetensors"
    content, asked = file.read_bytes(), []
    file.unlink()

    def download(repository: str, *, variant: str | None, **options: Any) -> Path:
        asked.append(variant)
        if variant == "fp16":
            raise ValueError("no such modeling files are available")
        file.write_bytes(content)
        return cache

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    hub = Weights("hub", SDXL.hub_id)
    assert fetch(SDXL, hub, dtype="fp16") == Weights("cache", str(cache))
    assert asked == ["fp16", None]
    assert fetch(SDXL, Weights("random", ""), dtype="fp16") == Weights("random", "")


def test_what_cannot_be_downloaded_is_one_message(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    class Unreachable(ValueError, OSError):  # what the hub's library raises is both
        pass

    def download(*args: Any, **options: Any) -> None:
        raise Unreachable("no route\nto the hub")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    with pytest.raises(InputError, match=r"the weights of 'sdxl' cannot be downloaded: no route$"):
        fetch(SDXL, Weights("hub", SDXL.hub_id), dtype="fp32")


def test_a_gated_model_is_left_out_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def gated(self: Any, repository: str, **options: Any) -> None:
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", lambda *a, **k: None)
    assert locate(SDXL, online=True) == Weights("hub", SDXL.hub_id)
    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", gated)
    said: list[str] = []
    assert locate(SDXL, online=True, remark=said.append) is None
    assert "accept its licence" in said[0]


# ---- the disk is what is timed


def test_what_is_not_on_the_disk_yet_is_written_before_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("fsync"))
    monkeypatch.setattr(os, "posix_fadvise", lambda *a: order.append("forget"), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    file = tmp_path / "x.safetensors"
    file.write_bytes(bytes(3 * 4096))
    held = page_cache.drop([file])
    assert order == ["fsync", "forget"]
    assert held in (None, 1.0)  # neither was done


def test_files_of_every_kind_are_dropped_and_the_first_load_is_not_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = pipelines.load(entry_of(folder), Weights("folder", str(folder)), device="cpu", dtype="fp32")
    torch.save(state.vae.state_dict(), whole.with_suffix(".bin"))
    whole.unlink()
    happened: list[Any] = []
    load = loads.load

    def drop(files: Any) -> float:
        happened.append({file.suffix for file in files})
        return 0.25

    def watched(*args: Any, **options: Any) -> Any:
        happened.append("load")
        return load(*args, **options)

    monkeypatch.setattr(loads, "drop", drop)
    monkeypatch.setattr(loads, "load", watched)
    disk = loads.from_disk(
        entry_of(folder), Weights("folder", str(folder)), device="cpu", dtype="fp32", repeats=2
    )
    both = {".bin", ".safetensors"}
    assert happened == ["load", both, "load", both, "load"]
    assert len(disk.seconds) == 2
    assert disk.cached == 0.25
    sizes = [f.stat().st_size for f in folder.glob("*/*") if f.suffix in both]
    assert disk.file_bytes == sum(sizes)


def test_what_cannot_be_pinned_is_staged_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.arange(6.0).reshape(2, 3).T, torch.ones(2)]

    def full(*args: Any, **options: Any) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty_like", full)
    staged, pinned = loads.stage(tensors, pin=True)
    assert not pinned
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in zip(staged, tensors, strict=True))
