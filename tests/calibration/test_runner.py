"""A whole calibration on tiny pipelines: what it measures, what it survives, and that it says what is wrong."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from argus_sim.errors import InputError
from argus_sim.profile import Profile
from calibration.approximations import Run
from calibration.cli import main
from calibration.latency import Workload
from calibration.measure import carry_out, prepare
from calibration.plan import Cell
from calibration.progress import Silent
from calibration.store import Store
from calibration.wishes import Wishes, seconds_of

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from tests.calibration.make_runs import PROMPTS, calibrate, cells, wishes  # noqa: E402
from tests.patience import LONG_S  # noqa: E402

pytestmark = pytest.mark.usefixtures("orderly_time")

#: What makes a calibration short.
FEW: dict[str, Any] = {"approximations": ("steps-6",), "batch_sizes": (1,), "latency_only": True}


@pytest.fixture(scope="module")
def done(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "tiny"
    models = (f"big={zoo / 'big'}", f"small={zoo / 'small'}")
    outcome = calibrate(wishes(zoo, out, models=models, sheets=1))
    assert outcome.finished
    return out


def test_the_profile_is_sound_and_measured_throughout(done: Path) -> None:
    profile = Profile.load(done)
    profile.validate()
    assert set(profile.measured_summary().values()) == {"measured"}
    assert [v.name for v in profile.variants] == ["big", "big/ac-3", "big/ac-6", "big/steps-6", "small"]
    assert profile.manifest.base == "big"
    assert len(profile.prompts) == PROMPTS
    assert profile.batch_sizes(profile.base) == (1, 2)
    assert {len(profile.load_samples_s("big", source)) for source in ("disk", "host", "gpu")} == {3}
    assert np.isfinite(profile.relative_quality()).all()
    ac = [profile.variants[v] for v in profile.ladder("AC")[1:]]
    assert [(v.skipped_steps, v.steps) for v in ac] == [(3, 10), (6, 10)]


def test_the_manifest_says_how_and_where(done: Path) -> None:
    manifest = Profile.load(done).manifest
    assert manifest.gpu.startswith("CPU: ")
    assert {"torch", "diffusers", "transformers"} <= set(manifest.libraries)
    assert manifest.dtype == "fp32"
    assert manifest.resolution == (16, 16)
    details: Any = manifest.generator
    assert {"text_s", "step_s", "vae_s", "total_s"} <= set(details["models"]["big"]["parts_s"])
    skipping = details["models"]["big"]["skipping_predicted"]
    assert set(skipping) == {"big/ac-3", "big/ac-6"}
    assert all(values["runs"] == 6 and values["ratio"] > 0 for values in skipping.values())
    assert details["drift"]["ratio"] > 0
    assert details["models"]["big"]["parameters"]["unet"] > 0
    assert details["models"]["big"]["dtype"] == "fp32"
    known = details["latency"]["big--b1"]
    assert known["samples"] >= 3
    assert known["warm_up"] >= 1
    assert {"half_width", "steady", "decoded_in_turn", "clocks"} <= set(known)


def test_the_ladders_are_in_order(done: Path) -> None:
    profile = Profile.load(done)
    assert profile.strategies == ("AC", "SM", "STEPS")
    assert [profile.variants[v].name for v in profile.ladder("SM")] == ["big", "small"]


def test_it_says_how_far_to_trust_it(done: Path) -> None:
    notes: Any = Profile.load(done).manifest.generator["notes"]
    assert any("latencies are not known to 5 %" in note for note in notes)  # of a hundredth of a second each


def test_no_path_of_the_machine_is_in_it(done: Path, zoo: Path) -> None:
    text = (done / "profile.json").read_text("utf-8")
    assert str(zoo) not in text
    assert "/tmp" not in text


def test_similarity_is_that_of_the_prompt_whose_latents_were_used(done: Path) -> None:
    table = Profile.load(done).table("similarity")
    assert len(table) == PROMPTS
    assert (table["prompt"] != table["neighbour"]).all()
    assert table["similarity"].between(0.0, 1.0).all()


def test_the_base_is_like_itself(done: Path) -> None:
    profile = Profile.load(done)
    ssim = profile.quality("ssim")
    assert ssim[:, profile.base] == pytest.approx(1.0)
    others = [profile.variant_id("big/ac-6"), profile.variant_id("big/steps-6")]
    assert (ssim[:, others] < 0.99999).all()


def test_contact_sheets_are_pictures(done: Path) -> None:
    sheets = list((done.with_name("tiny.run") / "sheets").glob("*.png"))
    assert len(sheets) == 1
    assert sheets[0].read_bytes().startswith(b"\x89PNG")
    assert not (done.with_name("tiny.run") / "work").exists()


def test_a_run_goes_on_without_its_options_and_with_no_other_weights(
    done: Path, zoo: Path, tmp_path: Path
) -> None:
    out, run = tmp_path / "tiny", tmp_path / "tiny.run"
    shutil.copytree(done, out)
    shutil.copytree(done.with_name("tiny.run"), run)
    before = cells(out)
    outcome = calibrate(Wishes(out=out, resume=True, sheets=1))
    assert cells(out) == before
    assert outcome.assembled.profile.digest() == Profile.load(done).digest()
    assert (len(outcome.sheets), outcome.remark) == (1, "")
    outcome = calibrate(Wishes(out=out, resume=True, sheets=2))
    assert "1 contact sheets lack images" in outcome.remark
    with pytest.raises(InputError, match="--zoo: the run that goes on is of 'sd', not 'shapes'"):
        calibrate(Wishes(out=out, resume=True, zoo="shapes"))
    other = Wishes(out=out, resume=True, models=(f"big={zoo / 'small'}", f"small={zoo / 'small'}"))
    with pytest.raises(InputError, match=r"other settings \(weights of big: '\w+' then, '\w+' now\)"):
        calibrate(other)
    # A run of before weights were told apart.
    for file in [run / "plan.json", *run.glob("cells/load--*.json")]:
        told = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in told.items() if k not in ("folders", "weights")}))
    assert calibrate(other).finished


def test_no_time_for_a_latency_is_no_time(zoo: Path, tmp_path: Path) -> None:
    assert prepare(wishes(zoo, tmp_path / "x", cell_seconds=0.0), lambda text: None).settings.cell_seconds == 0.0


def test_a_stopped_run_goes_on_where_it_was(zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"

    class Stop(Silent):
        left = 9

        def end(self, cell: Cell, record: dict[str, Any]) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    w = wishes(zoo, out, approximations=("ac-3",))
    with pytest.raises(KeyboardInterrupt):
        carry_out(prepare(w, lambda text: None), w, Stop())
    before = cells(out)
    assert len(before) == 9
    with pytest.raises(InputError, match="9 cells of an earlier run: go on with --resume"):
        calibrate(w)
    with pytest.raises(InputError, match=r"other settings \(seeds: 1 then, 2 now\)"):
        calibrate(replace(w, resume=True, seeds=2))
    calibrate(replace(w, resume=True))
    after = cells(out)
    assert {key: after[key] for key in before} == before
    assert Profile.load(out).name == "stopped"


def command(zoo: Path, out: Path) -> list[str]:
    return [
        sys.executable, "-c", "import sys; from calibration.cli import main; sys.exit(main())",
        "--device", "cpu", "--models", f"big={zoo / 'big'}", "--scorers", f"clip={zoo / 'judge'}",
        "--approximations", "ac-3,steps-6", "--batch-sizes", "1,2", "--steps", "10", "--prompts", str(PROMPTS),
        "--seeds", "1", "--cell-seconds", "0.05", "--out", str(out), "--quiet", "--resume",
    ]  # fmt: skip


def test_killed_at_random_moments_it_ends_with_the_same_cells_none_done_twice(
    done: Path, zoo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    dice = random.Random(7)
    seen: dict[str, int] = {}
    for _ in range(3):
        process = subprocess.Popen(command(zoo, out), env=environment, stdout=subprocess.DEVNULL)
        target = len(seen) + dice.randint(1, 4)
        stop = time.monotonic() + LONG_S
        while process.poll() is None and len(cells(out)) < target and time.monotonic() < stop:
            time.sleep(0.01)
        time.sleep(dice.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = cells(out)
        assert {key: now[key] for key in seen} == seen
        seen = now
    finished = subprocess.run(command(zoo, out), env=environment, capture_output=True, text=True, check=True)
    assert str(out) in finished.stdout
    after = cells(out)
    assert {key: after[key] for key in seen} == seen
    expected = prepare(wishes(zoo, out, approximations=("ac-3", "steps-6")), lambda text: None)
    assert set(after) == {cell.key for cell in expected.plan.cells}
    # Images do not depend on the interruptions: the same scores as in an undisturbed run.
    for key in (key for key in after if key.startswith("quality")):
        ours, theirs = (Store(folder).rows(key) for folder in (out, done))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-6)


def test_two_processes_never_share_a_run(zoo: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "x"), pytest.raises(InputError, match="another process"), Store(tmp_path / "x"):
        pass


def test_what_does_not_fit_is_recorded_and_the_rest_goes_on(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Workload.timed

    def full(self: Workload, approximation: Any, batch: int) -> Any:
        if batch >= 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return timed(self, approximation, batch)

    monkeypatch.setattr(Workload, "timed", full)
    out = tmp_path / "full"
    outcome = calibrate(wishes(zoo, out, approximations=("steps-6",), batch_sizes=(1, 2, 4), latency_only=True))
    profile = Profile.load(out)
    assert profile.batch_sizes(profile.base) == (1,)
    assert "big: a batch of 2 does not fit" in outcome.assembled.left_out
    record = json.loads((tmp_path / "full.run/cells/latency--big--b4.json").read_text())
    assert record["because"].startswith("a smaller batch")


def test_images_are_made_fewer_at_a_time_where_memory_ends(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Workload.call
    sizes = []

    def small(self: Workload, run: Run, prompts: Any, *args: Any, **options: Any) -> Any:
        if len(prompts) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(len(prompts))
        return call(self, run, prompts, *args, **options)

    monkeypatch.setattr(Workload, "call", small)
    w = wishes(zoo, tmp_path / "small", approximations=("ac-6",), quality_only=True, prompts="4")
    outcome = calibrate(w)
    assert outcome.assembled.left_out == ()
    assert 2 in sizes


def test_images_that_are_no_numbers_leave_their_variant_out(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Workload.call

    def broken(self: Workload, run: Any, *args: Any, **options: Any) -> Any:
        images = call(self, run, *args, **options)
        if run.skipped == 6:
            images = images.copy()
            images[0, 0, 0, 0] = np.nan
        return images

    monkeypatch.setattr(Workload, "call", broken)
    outcome = calibrate(wishes(zoo, tmp_path / "nan", approximations=("ac-3", "ac-6"), quality_only=True))
    names = {v.name for v in outcome.assembled.profile.variants}
    assert "big/ac-3" in names
    assert "big/ac-6" not in names
    assert any("big/ac-6: images are not numbers in 2 of 2" in line for line in outcome.assembled.left_out)


def test_a_base_of_no_numbers_is_one_message(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Workload, "call", lambda self, run, prompts, seeds, **o: np.full((len(prompts), 16, 16, 3), np.nan)
    )
    w = wishes(zoo, tmp_path / "nan", approximations=("steps-6",), quality_only=True)
    with pytest.raises(InputError, match=r"the base variant 'big' is not done .*images are not numbers"):
        calibrate(w)
    assert cells(tmp_path / "nan")


def test_no_space_is_one_message_and_nothing_is_lost(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import calibration.store as store

    write, calls = store.write_atomically, []

    def full(path: Path, content: bytes) -> None:
        calls.append(path)
        if len([path for path in calls if path.parent.name == "cells"]) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    out = tmp_path / "full"
    w = wishes(zoo, out, **FEW)
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_atomically", full)
        with pytest.raises(InputError, match="no space is left on the disk; what is done is kept"):
            calibrate(w)
    kept = cells(out)
    assert len(kept) == 3
    calibrate(replace(w, resume=True))
    assert {key: cells(out)[key] for key in kept} == kept


def test_a_spent_budget_gives_what_is_done(zoo: Path, tmp_path: Path) -> None:
    w = wishes(zoo, tmp_path / "short", budget_s=0.0, **FEW)
    with pytest.raises(InputError, match="the base variant 'big' is not done"):
        calibrate(w)
    assert calibrate(replace(w, budget_s=None, resume=True)).finished


def test_latency_only_marks_quality_as_absent(zoo: Path, tmp_path: Path) -> None:
    calibrate(wishes(zoo, tmp_path / "fast", **FEW | {"approximations": ("ac-3",)}))
    profile = Profile.load(tmp_path / "fast")
    assert profile.manifest.metric == "absent"
    summary = profile.measured_summary()
    assert summary.pop("quality") == "synthetic"
    assert set(summary.values()) == {"measured"}
    for variant in range(len(profile.variants)):
        ((idle_s, latency),) = profile.after_idle(variant, 1)
        assert idle_s == 0.2
        assert latency.p50_s <= latency.p90_s <= latency.p99_s
    assert "each run after a pause of 0.2 s" in str(profile.provenance_of("after_idle")[0].derived)
    calibrate(wishes(zoo, tmp_path / "busy", **FEW | {"idle_seconds": 0.0}))
    assert "after_idle" not in Profile.load(tmp_path / "busy").tables


def test_models_can_be_measured_as_they_are(zoo: Path, tmp_path: Path) -> None:
    p = prepare(wishes(zoo, tmp_path / "plain", **FEW | {"approximations": ("none",)}), lambda text: None)
    assert [v.name for v in p.plan.variants] == ["big"]
    with pytest.raises(InputError, match="none"):
        prepare(wishes(zoo, tmp_path / "both", **FEW | {"approximations": ("none", "ac-3")}), lambda text: None)


def test_rounds_are_put_together(zoo: Path, tmp_path: Path) -> None:
    """Three turns for everything that is timed: their samples count together."""
    out = tmp_path / "turns"
    calibrate(wishes(zoo, out, **FEW | {"approximations": ("ac-3",), "rounds": 3}))
    stored = {f.stem: json.loads(f.read_text()) for f in (tmp_path / "turns.run" / "cells").glob("*.json")}
    profile = Profile.load(out)
    for kind, table in (("latency", "latency"), ("idle", "after_idle")):
        for row in profile.table(table).itertuples(index=False):
            key = f"{kind}--{row.variant.replace('/', '~')}--b{row.batch_size}"
            turns = [stored[key], stored[f"{key}--r1"], stored[f"{key}--r2"]]
            seconds = [s for turn in turns for s in turn["seconds"]]
            assert row.samples == len(seconds) == sum(turn["samples"] for turn in turns)
            assert row.mean_s == pytest.approx(np.mean(seconds))
            assert row.p99_s == pytest.approx(np.quantile(seconds, 0.99))
    settings: Any = profile.manifest.generator["settings"]
    assert settings["rounds"] == 3
    told: Any = profile.manifest.generator["latency"]
    cells = [(v.name, b) for i, v in enumerate(profile.variants) for b in profile.batch_sizes(i)]
    assert set(told) == {f"{name.replace('/', '~')}--b{b}" for name, b in cells}


def test_quality_only_has_a_rough_latency_and_says_so(zoo: Path, tmp_path: Path) -> None:
    calibrate(wishes(zoo, tmp_path / "images", approximations=("steps-6",), quality_only=True))
    profile = Profile.load(tmp_path / "images")
    assert profile.batch_sizes(profile.base) == (1,)
    assert "no precise latency" in (profile.provenance_of("latency")[0].derived or "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cuda:7"}, "no GPU 7"),
        ({"zoo": "sdd", "models": ()}, "no zoo 'sdd'; did you mean 'sd'"),
        ({"models": ("sdxl",), "random_weights": False}, "no weights of sdxl.*--random-weights.*--zoo shapes"),
        ({"models": ("sdxll",)}, "no model 'sdxll'.*did you mean 'sdxl'"),
        ({"models": ("x=/no/such/folder",)}, "model_index.json is missing"),
        ({"prompts": "nowhere.txt"}, "no such file"),
        ({"approximations": ("ac-30",)}, "big/ac-30: cannot skip 30 of 10 steps"),
        ({"approximations": ("ac-3", "ac-3")}, "named twice"),
        ({"approximations": ("huge/ac-3",)}, "model 'huge' is not among --models"),
        ({"approximations": ("ac-3+steps-6",)}, "full schedule only"),
        ({"latency_only": True, "quality_only": True}, "leave nothing to do"),
        ({"random_weights": True}, "--random-weights: builds models .* but big would be read from a folder"),
        ({"embedding": "clip"}, "--embedding: clip is the shapes zoo's own"),
        ({"metric": "clip_scor"}, "did you mean 'clip_score'"),
        ({"dtype": "fp8"}, "no dtype 'fp8'"),
        ({"batch_sizes": (0,)}, "start at 1"),
        ({"steps": 0}, "at least 1 step"),
    ],
)
def test_wrong_wishes_are_one_message(
    zoo: Path, tmp_path: Path, change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=message):
        prepare(wishes(zoo, tmp_path / "x", **change), lambda text: None)


def test_lengths_of_time() -> None:
    assert [seconds_of(t) for t in ("90s", "30m", "1h30m", "1.5h")] == [90, 1800, 5400, 5400]
    with pytest.raises(InputError, match="no length of time"):
        seconds_of("soon")


def test_the_command_line_prints_a_plan_and_stops(zoo: Path, tmp_path: Path, capsys: Any) -> None:
    assert main([*command(zoo, tmp_path / "x")[3:], "--plan-only"]) == 0  # it is the result: --quiet or not
    captured = capsys.readouterr()
    assert "big, big/ac-3, big/steps-6" in captured.out
    assert "a rough guess" in captured.out
    assert captured.err == ""
    assert not (tmp_path / "x.run").exists()


def test_the_command_line_says_what_is_wrong(capsys: Any) -> None:
    assert main(["--device", "cpu", "--models", "sdxll"]) == 2
    assert "error: --models: no model 'sdxll'" in capsys.readouterr().err
    assert main(["--no-such-option"]) == 2
    assert "No such option" in capsys.readouterr().err
    assert main(["--gpu", "12"]) == 2
    assert "no GPU 12" in capsys.readouterr().err


def test_sizes_on_the_meta_device(capsys: Any) -> None:
    assert main(["--device", "meta", "--models", "tiny-sd,sd15", "--random-weights"]) == 0
    text = capsys.readouterr().out
    assert "859,520,964" in text
    assert "differs" not in text


def test_sizes_of_models_that_come_as_folders(tmp_path: Path, capsys: Any) -> None:
    """Nobody has published them, so there is nothing that they would agree with."""
    assert main(["--device", "meta", "--zoo", "shapes"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows[:3]] == [["shapes-large", part] for part in ("text_encoder", "unet", "vae")]
    assert len(rows) == 12
    assert all(len(row) == 3 and int(row[2].replace(",", "")) > 10_000 for row in rows)
    (tmp_path / "model_index.json").write_text("{}")
    assert main(["--device", "meta", "--models", f"mine={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"error: --models: {str(tmp_path)!r} holds no weights as .safetensors\n"
