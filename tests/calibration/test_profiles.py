"""What is done with profiles once measured: reports, merging, differences, predictors. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from argus_sim.errors import InputError
from argus_sim.profile import Profile
from argus_sim.provenance import Provenance
from calibration.assemble import ABSENT, ROUGH_LATENCY
from calibration.cli import main
from calibration.compare import diff, merge
from calibration.figures import affinity_shares, pictures, save_figures
from calibration.fit import Predictor, affinity, fit, reliability_bins
from calibration.report import findings, write_html
from tests.make_profile import make_profile

LATENCY = {
    "big": {1: 4.0, 2: 7.0},
    "big/ac-10": {1: 3.2},
    "big/ac-25": {1: 2.0, 2: 3.5},
    "tiny": {1: 1.0, 2: 1.5},
}


def profile(**more: Any) -> Profile:
    return make_profile(LATENCY, spread=0.05, prompts=80, **more)


def telling(noise: float, prompts: int = 200) -> Profile:
    """A profile whose texts tell how good the small model is: 'easy' ones lose nothing, 'hard' ones much."""
    rng = np.random.default_rng(5)
    base = make_profile({"big": {1: 4.0}, "tiny": {1: 1.0}}, prompts=prompts)
    hard = rng.random(prompts) < 0.5
    colours = rng.choice(["red", "blue", "green"], prompts)
    tables = {name: base.table(name) for name in base.tables}
    tables["prompts"]["text"] = [
        f"a {c} {'crowd of many things' if h else 'circle'}" for c, h in zip(colours, hard, strict=True)
    ]
    tables["prompts"]["split"] = np.where(np.arange(prompts) % 2 == 0, "train", "test")
    loss = np.where(hard, 0.3, 0.0) + noise * rng.random(prompts)
    score = {("big", p): 1.0 for p in base.prompts} | {
        ("tiny", p): max(1.0 - x, 0.01) for p, x in zip(base.prompts, loss, strict=True)
    }
    rows = tables["quality"]
    rows["score"] = [score[v, p] for v, p in zip(rows["variant"], rows["prompt"], strict=True)]
    return Profile.from_tables(base.manifest, tables)


# ---- report


def test_the_report_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    write_html(tmp_path / "r.html", profile(), 0.05)
    text = (tmp_path / "r.html").read_text("utf-8")
    assert text.count("<figure>") == 5
    assert "default-src 'none'" in text
    assert 'src="http' not in text
    assert "synthetic" in text


def test_the_report_says_how_well_a_ratio_is_known(tmp_path: Path) -> None:
    known = {"predicted_s": 1.0, "measured_s": 1.0, "ratio": 0.98, "half_width": 0.05}
    old = {"predicted_s": 1.0, "measured_s": 1.0, "ratio": 1.02}
    models: Any = {"big": {"skipping_predicted": {"big/ac-10": known, "big/ac-25": old}}}
    p = profile()
    manifest = p.manifest.model_copy(update={"generator": {"models": models}})
    write_html(tmp_path / "r.html", Profile.from_tables(manifest, {t: p.table(t) for t in p.tables}), 0.05)
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "<td>0.98 ± 0.049</td>" in text
    assert "<td>1.02</td>" in text


def test_the_same_profile_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_html(tmp_path / name, profile(), 0.05)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_figures_as_files(tmp_path: Path) -> None:
    files = save_figures(tmp_path, profile(), 0.05)
    assert sorted({f.stem for f in files}) == [
        "ac-similarity", "affinity", "heat-map", "latency-batch", "quality-latency",
    ]  # fmt: skip
    assert all(f.stat().st_size > 2000 for f in files)


def test_absent_quality_is_not_drawn() -> None:
    bare = absent(profile())
    assert [p.name for p in pictures(bare, 0.05)] == ["latency-batch"]
    assert any("not measured" in line for line in findings(bare, 0.05))


def test_affinity_shares() -> None:
    shares = affinity_shares(telling(0.0), "SM", 0.05)
    assert shares.sum() == pytest.approx(1.0)
    assert 0.3 < shares[1] < 0.7


def test_what_a_pause_costs_is_told() -> None:
    cells = {"big": {1: 4.0}, "small": {1: 1.0}}
    rested = make_profile(cells, after_idle_s={"big": {0.2: 4.4, 1.0: 5.0}, "small": {0.2: 1.2}})
    told = [line for line in findings(rested, 0.05) if "without work" in line]
    assert [line.partition(",")[0] for line in told] == ["After 0.2 s without work", "After 1 s without work"]
    assert "+15.0 % in the median and +15.0 % at the 99th" in told[0]
    assert "+25.0 %" in told[1]
    assert not any("without work" in line for line in findings(profile(), 0.05))


# ---- merge and diff


def absent(p: Profile) -> Profile:
    """The same without quality, as --latency-only writes it."""
    tables = {name: p.table(name) for name in p.tables}
    tables["quality"] = tables["quality"].assign(metric=ABSENT, score=1.0)
    return Profile.from_tables(p.manifest.model_copy(update={"metric": ABSENT, "name": "fast"}), tables)


def rough(p: Profile) -> Profile:
    """The same with rough latencies, as --quality-only writes it."""
    tables = {name: p.table(name) for name in p.tables}
    tables["latency"] = (
        tables["latency"].loc[tables["latency"]["batch_size"] == 1].assign(mean_s=lambda t: 2 * t.mean_s)
    )
    provenance = p.manifest.provenance | {
        "latency": (Provenance(kind="measured", source="here", derived=ROUGH_LATENCY),)
    }
    return Profile.from_tables(p.manifest.model_copy(update={"provenance": provenance, "name": "images"}), tables)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_latency_of_one_and_quality_of_the_other(order: tuple[int, int]) -> None:
    parts = (absent(profile()), rough(profile()))
    whole = merge([parts[i] for i in order], "whole")
    assert whole.manifest.metric == "score"
    assert whole.batch_sizes(0) == (1, 2)
    assert whole.latency(0, 1).mean_s == 4.0
    assert np.array_equal(whole.quality(), profile().quality())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_times_after_a_pause_come_from_the_run_of_the_latencies(order: tuple[int, int]) -> None:
    cells = {"big": {1: 4.0, 2: 6.0}, "small": {1: 1.0}}
    made = make_profile(cells, after_idle_s={"big": {0.2: 4.5}, "small": {0.2: 1.5}})
    parts = (absent(make_profile(cells, after_idle_s={"big": {0.2: 5.0}})), rough(made))
    whole = merge([parts[i] for i in order], "whole")
    assert [found.mean_s for _, found in whole.after_idle(0, 1)] == [5.0]
    assert whole.after_idle(1, 1) == ()
    assert "after_idle" not in merge([absent(make_profile(cells)), rough(made)], "x").tables


def test_a_merged_profile_with_the_latencies_of_another_machine() -> None:
    """It says what it is of the part with quality, and keeps of the runs those that left something in it."""

    def run_of(p: Profile, name: str, **settings: bool) -> Profile:
        change = {"name": name, "generator": {"settings": settings}, "description": f"What {name} says."}
        return Profile.from_tables(p.manifest.model_copy(update=change), {t: p.table(t) for t in p.tables})

    images = run_of(rough(profile()), "images", quality=True, latency=False)
    times = run_of(absent(profile()), "times", quality=False, latency=True)
    here = merge([images, times], "here")
    there = merge([run_of(absent(profile()), "fast", quality=False, latency=True), here], "there")
    assert there.manifest.description == "Merged from fast, here. What images says."
    assert [run["name"] for run in here.manifest.generator["merged"]] == ["images", "times"]
    assert [run["name"] for run in there.manifest.generator["merged"]] == ["fast", "images"]


def test_models_of_two_runs_join_their_ladders() -> None:
    a = make_profile({"big": {1: 4.0}, "small": {1: 2.0}}, prompts=20)
    b = make_profile({"other": {1: 3.0}, "other/ac-10": {1: 2.5}, "tiny": {1: 1.0}}, prompts=20)
    both = merge([a, b], "both")
    assert [both.variants[v].name for v in both.ladder("SM")] == ["big", "other", "small", "tiny"]
    assert [both.variants[v].name for v in both.ladder("AC@other")] == ["big", "other/ac-10"]
    assert both.manifest.generator["merged"][0]["name"] == "test"


def test_what_does_not_fit_together() -> None:
    a = profile()
    other = Profile.from_tables(
        a.manifest.model_copy(update={"gpu": "another"}), {name: a.table(name) for name in a.tables}
    )
    with pytest.raises(InputError, match="not of one kind: gpu 'none' and 'another'"):
        merge([a, other], "x")
    tables = {name: a.table(name) for name in a.tables}
    tables["prompts"]["text"] = "changed"
    with pytest.raises(InputError, match="prompt 'p0' is 'a prompt number 0' in one profile and 'changed'"):
        merge([a, Profile.from_tables(a.manifest, tables)], "x")
    with pytest.raises(InputError, match="at least two"):
        merge([a], "x")


def test_a_profile_does_not_differ_from_itself() -> None:
    found = diff(profile(), profile())
    assert found["equal"]
    assert found["facts"] == {}
    assert {row["latency_ratio"] for row in found["latency"]} == {1.0}


def test_differences_are_ratios() -> None:
    faster = {name: {b: s / 2 for b, s in cells.items()} for name, cells in LATENCY.items() if name != "tiny"}
    found = diff(profile(), make_profile(faster, spread=0.05, prompts=80))
    assert found["only_a"] == ["tiny"]
    assert {row["latency_ratio"] for row in found["latency"]} == {0.5}
    assert found["disk_load_ratio"] == {"big": 1.0}


# ---- fit


def test_a_text_that_tells_is_learned() -> None:
    result = fit(telling(0.02))
    (judgement,) = result.judgements
    assert judgement.accuracy > 0.95
    assert judgement.baseline_accuracy < 0.7
    assert judgement.regret < 0.01
    assert judgement.explained > 0.9
    assert judgement.speed_up == pytest.approx(judgement.perfect_speed_up, rel=0.1)
    assert judgement.calibration_error < 0.05


def test_a_text_that_tells_nothing_is_not() -> None:
    (judgement,) = fit(make_profile({"big": {1: 4.0}, "tiny": {1: 1.0}}, prompts=200, spread=0.1)).judgements
    assert judgement.explained < 0.1
    assert judgement.accuracy < judgement.baseline_accuracy + 0.1


def test_a_stored_predictor_predicts_the_same(tmp_path: Path) -> None:
    predictor = fit(telling(0.02)).predictor
    predictor.save(tmp_path / "p.npz")
    again = Predictor.load(tmp_path / "p.npz")
    texts = ["a red circle", "a blue crowd of many things"]
    assert again.variants == ("big", "tiny")
    assert again.quality(texts) == pytest.approx(predictor.quality(texts), abs=1e-5)
    easy, hard = again.quality(texts)[:, 1]
    assert easy - hard > 0.2
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a predictor's file"):
        Predictor.load(tmp_path / "bad.npz")


def test_too_few_prompts_to_fit() -> None:
    with pytest.raises(InputError, match="at least 10 and 5 are needed"):
        fit(make_profile({"big": {1: 4.0}, "tiny": {1: 1.0}}, prompts=8))


def test_affinity_is_the_deepest_level_that_is_good_enough() -> None:
    quality = np.array([[1.0, 0.9, 0.96, 0.8], [0.5, 0.4, 0.3, 0.2], [0.9, 0.9, 0.9, 0.9]])
    assert affinity(quality, 0.05).tolist() == [2, 0, 3]


def test_reliability_bins_count_everything() -> None:
    stated = np.array([0.0, 0.05, 0.5, 0.99, 1.0])
    mean, share, count = reliability_bins(stated, np.array([False, False, True, True, True]))
    assert count.tolist() == [2, 1, 2]
    assert share.tolist() == [0.0, 1.0, 1.0]
    assert mean == pytest.approx([0.025, 0.5, 0.995])


# ---- the command line


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    telling(0.05).save(tmp_path / "a")
    telling(0.2).save(tmp_path / "b")
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_commands(folders: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    a, b = folders
    assert main(["report", a, "--out", str(tmp_path / "r.html"), "--figures", str(tmp_path / "f")]) == 0
    assert "SM: " in capsys.readouterr().out
    assert main(["diff", a, b]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["diff", a, a]) == 0
    assert capsys.readouterr().out == "the same content\n"
    assert main(["diff", a, b, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["equal"] is False
    assert main(["fit", a, "--out", str(tmp_path / "fit")]) == 0
    assert "calibration error: SM" in capsys.readouterr().out
    assert {f.name for f in (tmp_path / "fit").iterdir()} == {
        "predictor.npz", "fit.json", "reliability.png", "reliability.svg",
    }  # fmt: skip
    assert main(["merge", a, b, "--out", str(tmp_path / "m")]) == 0
    assert main(["validate", str(tmp_path / "m")]) == 0
    assert main(["report", "artefact-a10"]) == 2
    assert "did you mean 'artefact-a100'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--gpu 0 --seeds 2 report artefact-a100", "--gpu, --seeds: has no effect with the command 'report'"),
        ("--latency-only --metric x --batch-sizes 1", "--metric: has no effect with --latency-only"),
        ("--random-weights --sheets 1", "--sheets: has no effect with --random-weights"),
        ("--quality-only --cell-seconds 3", "--cell-seconds: has no effect with --quality-only"),
        ("--device meta --zoo sd --gpu 0", "--gpu: has no effect with --device meta"),
        ("embed artefact-a100 --column text --out x", "--column: only .csv files have columns"),
        ("fit artefact-a100 --embedding clip", "--embedding: clip is the shapes zoo's own"),
    ],
)
def test_what_would_be_ignored_is_refused(arguments: str, message: str, capsys: Any) -> None:
    assert main(arguments.split()) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    check = (
        "import sys, calibration.cli as c; c.main(['--help']);"
        "print([m for m in ('torch', 'diffusers', 'pandas', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_without_torch_there_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import sys

    for module in ("torch", "diffusers"):
        monkeypatch.setitem(sys.modules, module, None)
    for arguments in (["--device", "cpu", "--zoo", "shapes"], ["--device", "meta"], ["--gpu", "0"]):
        assert main(arguments) == 2
        assert "pip install 'argus-sim[calibrate]'" in capsys.readouterr().err


def test_a_frame_of_the_quality_table_survives_the_merge() -> None:
    merged = merge([absent(profile()), profile()], "x").table("quality")
    pd.testing.assert_frame_equal(merged, profile().table("quality"))
