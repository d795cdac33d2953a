"""``argus-sim profiles`` and ``argus-sim traces``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from argus_sim.cli import main
from argus_sim.profile import Profile, shipped_profiles
from argus_sim.profile.importing import IMPORTERS
from argus_sim.trace import Trace, shipped_models, shipped_traces


def test_profiles(call: Callable[..., str], call_json: Any) -> None:
    assert [profile["name"] for profile in call_json("profiles", "list")] == list(shipped_profiles())
    listed = call("profiles", "list")
    for name in shipped_profiles():
        assert f"{name}: " in listed
    got = call_json("profiles", "show", "artefact-a100")
    profile = Profile.load("artefact-a100")
    assert got["digest"] == profile.digest()
    assert got["variants"][0]["latency_s"] == 4.2
    assert got["mean_load_s"]["sdxl"] == pytest.approx(46.98, abs=0.01)
    assert {origin["kind"] for origin in got["provenance"]} >= {"published", "synthetic"}
    said = call("profiles", "show", "artefact-a100")
    for variant in profile.variants:
        assert re.search(rf"^ *{variant.name} +{variant.strategy} +{variant.level} ", said, re.MULTILINE)
    assert "latency (sdxl): published: " in said


RATINGS = """prompt_id,prompt,model,human_scores
1,a red cube,SDXL_Base,4|5|3
1,a red cube,SDXL_Turbo,5|5|5
2,two owls,SDXL_Base,1|2|3
2,two owls,SDXL_Turbo,1|2|2
"""


def test_importing_a_profile(
    tmp_path: Path, call: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ratings.csv").write_text(RATINGS)
    arguments = [
        "profiles",
        "import",
        "genai-bench",
        str(tmp_path / "ratings.csv"),
        "--out",
        str(tmp_path / "mine"),
    ]
    arguments += [
        "-o",
        "latency_from=diffserve-a100",
        "--option",
        "models=[SDXL_Base, SDXL_Turbo]",
        "-o",
        "name=mine",
    ]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"wrote {tmp_path / 'mine'}: 2 variants, 2 prompts\n"
    assert Profile.load(tmp_path / "mine").name == "mine"
    assert json.loads(call(*arguments, "--json", "--quiet"))["variants"] == 2


def test_traces(call: Callable[..., str], call_json: Any) -> None:
    names = [trace["name"] for trace in call_json("traces", "list")]
    assert names == [*shipped_traces(), *shipped_models()]
    assert "bursty: 156,431 images in 14 h; published (rate curve), synthetic\n" in call("traces", "list")
    got = call_json("traces", "show", "bursty")
    assert got["count"] == got["stats"]["count"] == 156_431
    assert got["stats"] == call_json("traces", "stats", "bursty")
    said = call("traces", "show", "bursty")
    assert "published (rate curve): " in said
    assert len([line for line in said.splitlines() if "█" in line]) == 1
    assert "156,431" in call("traces", "stats", "bursty")


def test_what_is_undefined_is_null_in_json(tmp_path: Path, call_json: Any) -> None:
    (tmp_path / "short.csv").write_text("arrival_s\n1\n2\n")
    assert call_json("traces", "stats", tmp_path / "short.csv")["peak_per_min"] is None


def test_a_trace_that_counts_from_1970_is_refused_in_batches_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "epoch.csv"
    path.write_text("arrival_s\n1741089600\n1741089601\n")
    assert main(["traces", "stats", str(path)]) == 2
    assert f"error: {path}: begins at 1.741e+09 s" in capsys.readouterr().err


def test_generating_the_shipped_trace_again(tmp_path: Path, call_json: Any) -> None:
    spec = Path(__file__).parents[2] / "traces" / "bursty.yaml"
    got = call_json("traces", "generate", spec, "--out", tmp_path / "again.parquet")
    assert got["file"] == str(tmp_path / "again.parquet")
    assert got["digest"] == Trace.read(tmp_path / "again.parquet").digest()


def test_importing_a_trace(tmp_path: Path, call: Callable[..., str], call_json: Any) -> None:
    (tmp_path / "log.csv").write_text("ts,text\n5000,an owl\n4000,a cube\n")
    options = ("-o", "time_column=ts", "-o", "unit=ms", "-o", "from_first=true", "--option", "prompt_column=text")
    assert call("traces", "import", "csv", tmp_path / "log.csv", "--out", tmp_path / "t.parquet", *options) == ""
    trace = Trace.read(tmp_path / "t.parquet")
    assert trace.arrival_s.tolist() == [0.0, 1.0]
    assert trace.prompt == ("a cube", "an owl")


def test_the_seed_draws_what_a_format_does_not_record(tmp_path: Path, call_json: Any) -> None:
    (tmp_path / "counts.csv").write_text("timestamp,value\n2015-01-01 00:00:00,9\n2015-01-01 00:05:00,9\n")

    def digest(*seed: str) -> Any:
        arguments = (
            "traces",
            "import",
            "nab-twitter-volume",
            tmp_path / "counts.csv",
            "--out",
            tmp_path / "t.csv",
        )
        return call_json(*arguments, *seed)["digest"]

    assert digest() == digest() == digest("--seed", "0") != digest("--seed", "1")


def test_formats(call: Callable[..., str], call_json: Any) -> None:
    got = {entry["name"]: entry for entry in call_json("traces", "formats")}
    assert set(got) >= {"gentd26-requests", "gentd26-gateway", "azure-llm-2023", "nab-twitter-volume", "csv"}
    assert "timestamp" in next(o for o in got["csv"]["options"] if o["name"] == "unit")["type"]
    assert "-o unit=s (" in re.sub(" +", " ", call("traces", "formats"))


def test_formats_of_ratings(call: Callable[..., str], call_json: Any) -> None:
    got = {entry["name"]: entry for entry in call_json("profiles", "formats")}
    assert set(got) == set(IMPORTERS)
    options = {option["name"]: option for option in got["agiqa-3k"]["options"]}
    assert options["latency_of"]["needed"]
    assert options["score"] == {
        "name": "score",
        "needed": False,
        "default": "align",
        "choices": ["align", "quality"],
        "description": "",
    }
    text = re.sub(" +", " ", call("profiles", "formats"))
    assert "-o score=align (align | quality)" in text
    assert "-o latency_of=... needed: " in text


def test_fitting_a_model(tmp_path: Path, call: Callable[..., str], call_json: Any) -> None:
    model = tmp_path / "diurnal-model.yaml"
    said = call("traces", "fit", "diurnal", "--out", str(model), "--steps", "24", "--seeds", "2", "--quiet")
    assert "dispersion_index_per_min" in said
    made = call_json("traces", "show", str(model))
    assert made["count"] == pytest.approx(202_152, rel=0.02)
    got = call_json("traces", "fit", "diurnal", "--out", str(model), "--steps", "24", "--seeds", "2")
    assert got["recorded"]["arrivals"] == 202_152
    assert got["steps"] >= 24
    assert main(["traces", "fit", "diurnal", "--out", str(tmp_path / "m.txt")]) == 2
