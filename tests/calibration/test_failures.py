"""What cannot be done is recorded, the rest goes on, and a run that goes on tries it again."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from argus_sim.errors import InputError
from argus_sim.profile import Profile
from calibration import loads, measure, quality_cells, runner, scorers, session
from calibration.latency import Workload
from calibration.measure import carry_out, prepare
from calibration.plan import Plan, Settings, hurried, make_plan
from calibration.progress import Silent
from calibration.runner import Calibration
from calibration.store import FAILED, OK, DeviceLost, Store
from calibration.text import neighbours
from calibration.weights import Weights
from calibration.wishes import Wishes
from calibration.zoo import ZooModel, select

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from tests.calibration.make_pipelines import SMALL  # noqa: E402
from tests.calibration.make_runs import calibrate, cells, wishes  # noqa: E402

pytestmark = pytest.mark.usefixtures("orderly_time")


def record(out: Path, key: str) -> dict[str, Any]:
    found = Store(out).get(key)
    assert found is not None
    return found


def test_a_model_that_cannot_be_loaded_is_left_out_and_tried_again(zoo: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(zoo / "small", tmp_path / "small"))
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.unlink()
    out = tmp_path / "out"
    few: dict[str, Any] = {"approximations": ("steps-6",), "batch_sizes": (1,), "latency_only": True}
    w = wishes(zoo, out, models=(f"small={broken}",), **few)
    with pytest.raises(InputError, match=r"the base variant 'small' is not done .*cannot be loaded"):
        calibrate(w)
    w = replace(w, models=(f"big={zoo / 'big'}", f"small={broken}"), out=tmp_path / "other")
    outcome = calibrate(w)
    assert outcome.finished
    assert [v.name for v in Profile.load(tmp_path / "other").variants] == ["big", "big/steps-6"]
    (line,) = outcome.assembled.left_out
    assert line.startswith("small: loading it failed (the weights of 'small' cannot be loaded")
    assert str(tmp_path) not in line
    assert any("cells failed" in note and "--resume" in note for note in outcome.assembled.notes)
    kept = {key: at for key, at in cells(tmp_path / "other").items() if "small" not in key}
    file.write_bytes(content)
    outcome = calibrate(replace(w, resume=True))
    assert outcome.assembled.left_out == ()
    assert "small" in {v.name for v in outcome.assembled.profile.variants}
    after = cells(tmp_path / "other")
    assert {key: after[key] for key in kept} == kept


def test_what_fails_in_one_chunk_fails_what_needs_it_and_no_more(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = quality_cells.rate

    def breaking(*args: Any, **options: Any) -> Any:
        if options["variant"] == "big" and options["first"] == 8:
            raise RuntimeError("a kernel that is missing\nand more")
        return rate(*args, **options)

    out = tmp_path / "out"
    w = wishes(zoo, out, quality_only=True)
    with monkeypatch.context() as patch:
        patch.setattr(quality_cells, "rate", breaking)
        profile = calibrate(w).assembled.profile
    assert len(profile.prompts) == 8
    failed = record(out, "quality--big--s0--c0001")
    assert (failed["status"], failed["because"]) == (FAILED, "a kernel that is missing")
    assert "breaking" in failed["traceback"]
    # Never compared with itself for want of the base's images.
    missing = record(out, "quality--big~steps-6--s0--c0001")
    assert missing["because"] == "there are no images of the base to compare with"
    work = out.with_name("out.run") / "work"
    assert work.is_dir()  # for what may be tried again
    profile = calibrate(replace(w, resume=True)).assembled.profile
    assert len(profile.prompts) == 10
    assert record(out, "quality--big~ac-3--s0--c0001")["status"] == OK
    assert not work.exists()


def test_latents_of_a_chunk_that_failed_are_not_started_from(zoo: Path, tmp_path: Path) -> None:
    plan, calibration = planned(zoo, tmp_path, approximations=("ac-3",))
    cell = next(c for c in plan.cells if c.variant == "big/ac-3" and c.kind == "quality")
    with calibration.store:
        calibration.store.put_array("images--s0--c0000", torch.zeros(1).numpy())
        assert calibration._images.missing(cell) == "there are no latents of 'big' at step 3 to start from"


def test_a_cell_that_ends_the_process_twice_is_passed_over(zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = out.with_name("out.run")
    run.mkdir()
    (run / "attempts.json").write_text(json.dumps({"latency--big~steps-3--b1": 2, "latency--big--b1": 1}))
    few: dict[str, Any] = {"approximations": ("steps-6", "steps-3"), "batch_sizes": (1,), "latency_only": True}
    outcome = calibrate(wishes(zoo, out, **few))
    assert [v.name for v in outcome.assembled.profile.variants] == ["big", "big/steps-6"]
    assert "the process ended in the middle of it 2 times" in record(out, "latency--big~steps-3--b1")["because"]
    assert json.loads((run / "attempts.json").read_text()) == {}


def test_attempts_are_noted_until_they_end(tmp_path: Path) -> None:
    with Store(tmp_path / "x") as store:

        def noted() -> Any:
            return json.loads((store.folder / "attempts.json").read_text())

        def attempt(key: str, error: BaseException) -> int:
            with contextlib.suppress(type(error)), store.attempt(key) as before:
                assert noted()[key] == before + 1
                raise error
            return before

        assert attempt("a", KeyboardInterrupt()) == 0
        assert noted() == {}
        assert [attempt("a", DeviceLost("gone")) for _ in range(3)] == [0, 1, 2]
        assert attempt("b", ValueError()) == 0
        assert noted() == {"a": 3}


def test_a_device_that_no_longer_answers_ends_the_run_with_one_message(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = False

    def timed(self: Workload, *args: Any) -> Any:
        nonlocal dead
        dead = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def release(device: str) -> None:
        if dead:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Workload, "timed", timed)
    monkeypatch.setattr(loads, "release", release)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"no longer answers after drift--big--0 .*illegal.*--resume"):
        calibrate(wishes(zoo, out, latency_only=True, approximations=("steps-6",)))
    assert json.loads((out.with_name("out.run") / "attempts.json").read_text()) == {"drift--big--0": 1}


# ---- what is on the device


def planned(zoo: Path, tmp_path: Path, **more: Any) -> tuple[Plan, Calibration]:
    """A calibration that is not begun, for its cells to be done one by one."""
    p = prepare(wishes(zoo, tmp_path / "out", **more), lambda text: None)
    similarity = neighbours(list(p.prompts["prompt"]), list(p.prompts["text"]), "ngrams")
    store = Store(p.out)
    calibration = Calibration(
        p.settings, p.plan, p.entries, p.weights, p.prompts, similarity, store, progress=Silent()
    )
    return p.plan, calibration


def do(calibration: Calibration, *keys: str) -> None:
    chosen = [next(c for c in calibration.plan.cells if c.key == key) for key in keys]
    calibration.plan = replace(calibration.plan, cells=tuple(chosen))
    with calibration.store:
        assert calibration.run()


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> WeakSet[Any]:
    """Denoisers of pipelines that were loaded and scorers that were built, as long as they live."""
    found: WeakSet[Any] = WeakSet()

    def watch(module: Any, name: str, part: Callable[[Any], Any]) -> None:
        make = getattr(module, name)

        def made(*args: Any, **options: Any) -> Any:
            out = make(*args, **options)
            found.add(part(out))
            return out

        monkeypatch.setattr(module, name, made)

    watch(session, "load", lambda pipe: pipe.unet)
    watch(loads, "load", lambda pipe: pipe.unet)
    watch(scorers, "build", lambda scorer: scorer)
    return found


def test_scorers_leave_the_device_before_a_latency_is_taken(
    zoo: Path, tmp_path: Path, alive: WeakSet[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, calibration = planned(zoo, tmp_path)
    timed, seen = Workload.timed, []

    def watched(self: Workload, *args: Any) -> Any:
        seen.append(sum(isinstance(thing, scorers.ClipScorer) for thing in alive))
        return timed(self, *args)

    monkeypatch.setattr(Workload, "timed", watched)
    do(calibration, "load--big", "quality--big--s0--c0000", "latency--big--b1")
    assert seen == [0]
    assert len(calibration.store.done()) == 3


def test_memory_that_ended_is_given_back(
    zoo: Path, tmp_path: Path, alive: WeakSet[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, calibration = planned(zoo, tmp_path)
    release, left = loads.release, []

    def full(self: Workload, *args: Any) -> Any:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    def watched(device: str) -> None:
        release(device)
        left.append(len(alive))

    monkeypatch.setattr(Workload, "timed", full)
    monkeypatch.setattr(loads, "release", watched)
    do(calibration, "load--big", "latency--big--b1", "latency--big--b2")
    assert left[-2:] == [0, 0]  # after the failure, and at the end
    assert record(tmp_path / "out", "latency--big--b1")["status"] == "does not fit"
    assert record(tmp_path / "out", "latency--big--b2")["because"].startswith("a smaller batch")


def test_random_weights_are_on_the_device_once(
    tmp_path: Path, alive: WeakSet[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, load, most = ZooModel.architecture, loads.load, 0
    monkeypatch.setattr(ZooModel, "architecture", lambda self, part: full(self, part) | SMALL[part])

    def watched(*args: Any, **options: Any) -> Any:
        nonlocal most
        out = load(*args, **options)
        most = max(most, len(alive))
        return out

    monkeypatch.setattr(loads, "load", watched)
    w = {"models": ("tiny-sd",), "random_weights": True, "approximations": ("steps-6",), "prompts": "2"}
    _, calibration = planned(tmp_path, tmp_path, **w)
    do(calibration, "load--tiny-sd")
    assert most == 1
    found = record(tmp_path / "out", "load--tiny-sd")
    assert len(found["disk_s"]) == len(found["host_s"]) == 3
    assert found["file_bytes"] >= found["weight_bytes"]
    assert not (tmp_path / "out.run" / "work" / "weights").exists()


def test_a_variant_that_needs_fewer_images_at_once_is_alone_in_that(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = quality_cells.rate

    def full(*args: Any, **options: Any) -> Any:
        if options["variant"] == "big/ac-3" and options["batch"] > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return rate(*args, **options)

    monkeypatch.setattr(quality_cells, "rate", full)
    calibrate(wishes(zoo, tmp_path / "out", approximations=("ac-3", "steps-6"), quality_only=True))
    sizes = {v: record(tmp_path / "out", f"quality--{v}--s0--c0001")["images_at_once"] for v in (
        "big", "big~ac-3", "big~steps-6",
    )}  # fmt: skip
    assert sizes == {"big": 8, "big~ac-3": 2, "big~steps-6": 8}


# ---- going on


def test_a_run_goes_on_only_where_it_began(zoo: Path, tmp_path: Path) -> None:
    w = wishes(zoo, tmp_path / "out", approximations=("steps-6",), latency_only=True)
    p = prepare(w, lambda text: None)
    with Store(p.out) as store:
        store.begin(p.settings, measure._machine(p.hardware), resume=False)
        store.put("load--big", {"status": OK})
        store.begin(p.settings, measure._machine(p.hardware), resume=True)
    other = replace(p.hardware, name="another GPU", libraries={**p.hardware.libraries, "torch": "0.1"})
    with pytest.raises(InputError, match=r"other settings .*machine: device: .*another GPU.*machine: torch: "):
        carry_out(replace(p, hardware=other), replace(w, resume=True), Silent())


def test_a_run_goes_on_with_the_models_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"sdxl": Weights("cache", "x"), "sd15": Weights("cache", "y")}
    monkeypatch.setattr(measure, "locate", lambda entry, **options: there.get(entry.name))
    begun = select("sd", ("sdxl", "tiny-sd"))
    chosen, weights = measure._with_weights(Wishes(), begun, lambda text: None, going_on=True)
    assert [entry.name for entry in chosen] == ["sdxl", "tiny-sd"]
    assert weights["tiny-sd"].origin == "hub"


def test_distances_between_sets_outlive_the_images(zoo: Path, tmp_path: Path) -> None:
    w = wishes(zoo, tmp_path / "out", approximations=("steps-6",), quality_only=True)
    first = calibrate(w).assembled.profile
    again = calibrate(replace(w, resume=True)).assembled.profile
    assert set(first.manifest.generator["set_distances"]) == {"features", "big/steps-6"}  # type: ignore[arg-type]
    assert again.manifest == first.manifest


def test_a_hurried_run_does_first_what_a_profile_needs() -> None:
    entries = [replace(entry, steps=10) for entry in select("shapes", ())[:2]]
    settings = Settings(
        "shapes", tuple(e.name for e in entries), "cpu", "fp32", ("ac-3", "steps-5"), (1, 2), None, 2, "16", "",
        ("clip",), "clip_score", "ngrams", True, True, False, 0.1, 0.2, 1, 1,
    )  # fmt: skip
    plan = make_plan(settings, entries, 16)
    order = [cell.key for cell in hurried(plan)]
    assert sorted(order) == sorted(cell.key for cell in plan.cells)
    base, small = (entry.name for entry in entries)
    at = order.index
    assert at(f"latency--{small}--b1") < at(f"quality--{base}--s0--c0000") < at(f"idle--{base}--b1")
    assert at(f"idle--{base}--b1") < at(f"latency--{base}--b2")
    assert at(f"quality--{base}--s1--c0000") < at(f"quality--{base}--s0--c0001")
    assert at(f"quality--{base}--s1--c0001") < at(f"quality--{base}~ac-3--s0--c0000") < at(f"parts--{base}")


def test_a_budget_that_ends_early_leaves_a_profile(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Loads, latencies of one image, and the first chunk of the base's.
    enough = 1 + 1 + 2 + 1 + 1 + 1
    monkeypatch.setattr(
        runner.Calibration, "_late", lambda self: len(self.store.done()) >= enough and self._deadline is not None
    )
    models = (f"big={zoo / 'big'}", f"small={zoo / 'small'}")
    w = wishes(zoo, tmp_path / "out", models=models, approximations=("steps-6",), batch_sizes=(1,), budget_s=1e6)
    outcome = calibrate(w)
    assert not outcome.finished
    assert [v.name for v in outcome.assembled.profile.variants] == ["big"]
    assert len(outcome.assembled.profile.prompts) == 8
    whole = calibrate(replace(w, resume=True, budget_s=None)).assembled.profile
    assert [v.name for v in whole.variants] == ["big", "big/steps-6", "small"]
