"""The command line as a user meets it: what it prints where, and what it leaves."""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer

import argus_sim
from argus_sim import runner
from argus_sim.cli import app, check, main, output, tables
from argus_sim.metrics import METRICS
from argus_sim.policies import registry
from argus_sim.profile import Profile, shipped_profiles
from argus_sim.runner import LOCK
from argus_sim.trace import Trace, shipped_traces
from tests.make_experiment import content, write_experiment

PROGRAM = [sys.executable, "-c", "import sys; from argus_sim.cli import main; sys.exit(main())"]

Command = Callable[..., str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must succeed; returns its stdout."""

    def run(*arguments: str | Path) -> str:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert "Traceback" not in err
        return out

    return run


@pytest.fixture
def call_json(call: Command) -> Callable[..., Any]:
    """Run a command with --json; returns what it says."""
    return lambda *arguments: json.loads(call(*arguments, "--json"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``small.yaml`` and its results in ``out``, run by the command line; tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = ["run", str(write_experiment(folder)), "--out", str(folder / "out"), "--jobs", "1", "--quiet"]
    assert main(arguments) == 0
    return folder


# -- run ---------------------------------------------------------------------------------------------------


def test_run_prints_the_result_and_tells_its_progress(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(finished / "small.yaml"), "--jobs", "1"]) == 0
    out, err = capsys.readouterr()
    headline, _, peak = out.partition("At the peak")
    for part in (headline, peak):
        assert "rush" in part
        assert re.search(r"argus\s*│\s*\d", part)
    assert "±" in headline
    assert "violations" in peak
    assert "On rush, " in out
    assert "synthetic (variants, latency, loads, prompts, quality, similarity, trace rush)" in out
    assert "nothing is measured here" in out
    assert str(Path("runs/small/report.html")) in out
    assert err == "4 of 4 runs; figures and report\n"
    assert (tmp_path / "runs" / "small" / "report.html").is_file()


def test_run_quiet_and_json(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(finished / "out", tmp_path / "out"))
    path = str(finished / "small.yaml")
    assert main(["run", path, "--out", str(out), "--resume", "--quiet", "--json"]) == 0
    said, err = capsys.readouterr()
    assert err == ""
    got = json.loads(said)
    assert got["experiment"] == "small"
    assert got["folder"] == str(out)
    assert [(row["policy"], row["trace"], row["seeds"]) for row in got["results"]] == [
        ("static", "rush", 2),
        ("argus", "rush", 2),
    ]
    summary = pd.read_csv(out / "summary.csv")
    for row in got["results"]:
        mean = summary.loc[summary["policy"] == row["policy"], "quality_yield"].mean()
        assert row["quality_yield"] == pytest.approx(mean)
    assert got["findings"] == [sentence for sentence in got["findings"] if sentence.startswith("On rush, ")]
    assert got["provenance"]["measured"] == []
    assert "quality" in got["provenance"]["synthetic"]


def test_the_peak_is_the_mean_of_the_runs_peaks(finished: Path) -> None:
    out = finished / "out"
    peaks = tables.peak(out, pd.read_csv(out / "summary.csv")).set_index("policy")
    runs = [json.loads((out / "argus" / "rush" / seed / "summary.json").read_text())["peak"] for seed in "34"]
    for name in ("offered_per_min", "violations_per_min", "quality_relative_to_base"):
        assert peaks.loc["argus", name] == pytest.approx(np.mean([run[name] for run in runs]))
    total = peaks["effective_throughput_per_min"] + peaks["violations_per_min"]
    np.testing.assert_allclose(total, peaks["offered_per_min"])


def test_run_takes_settings_and_seeds(tmp_path: Path, call: Command) -> None:
    out = tmp_path / "out"
    settings = ("--set", "policies=[static]", "--set", "slo.seconds=30", "--seeds", "1")
    call("run", write_experiment(tmp_path), "--out", out, "--jobs", "1", *settings)
    assert len(pd.read_csv(out / "summary.csv")) == 1
    outcomes = pd.read_parquet(out / "static" / "rush" / "3" / "outcomes.parquet")
    np.testing.assert_allclose(outcomes["deadline_s"] - outcomes["arrival_s"], 30.0)


@pytest.mark.parametrize(
    ("trouble", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted; "),
        (BrokenProcessPool(), 1, "error: a process was killed, perhaps for want of memory (see --jobs); "),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_is_cut_off_says_how_to_go_on(
    trouble: BaseException,
    code: int,
    says: str,
    begun: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def cut_off(*arguments: Any, on_start: Callable[[int, int], None], **options: Any) -> None:
        if begun:
            on_start(4, 0)
        raise trouble

    monkeypatch.setattr(runner, "run_experiment", cut_off)
    out = tmp_path / "with space"
    assert main(["run", str(write_experiment(tmp_path)), "--out", str(out)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    kept = f"finished runs are kept. To go on: argus-sim run '{out / LOCK}' --out '{out}' --resume"
    assert said.err == f"{says}{kept if begun else 'nothing was written'}\n"


def test_run_from_a_lock_file_notes_other_versions(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (finished / "out" / LOCK).read_text()
    lock = tmp_path / "old.lock.yaml"
    lock.write_text(re.sub(r"numpy: .*", "numpy: 1.26.0", text))
    out = Path(shutil.copytree(finished / "out", tmp_path / "out"))
    arguments = ["run", str(lock), "--out", str(out), "--resume"]
    assert main(arguments) == 0
    _, err = capsys.readouterr()
    assert err.startswith(f"note: made with numpy 1.26.0 (here {np.__version__})")


def test_a_shipped_experiment_is_known_by_name(call: Command) -> None:
    assert set(output.shipped_experiments()) >= {"fig7", "real"}
    assert call("validate", "fig7").startswith("fig7: a sound experiment")


# -- validate, policies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("small.yaml", "experiment"),
        ("out/experiment.lock.yaml", "experiment"),
        ("profile", "profile"),
        ("artefact-a100", "profile"),
        ("trace.csv", "trace"),
        ("bursty", "trace"),
        ("spec.yaml", "specification of a trace"),
    ],
)
def test_validate_knows_what_it_is_given(
    what: str, kind: str, finished: Path, monkeypatch: pytest.MonkeyPatch, call: Command, call_json: Any
) -> None:
    monkeypatch.chdir(finished)
    Path("trace.csv").write_text("arrival_s\n1\n2.5\n")
    Path("spec.yaml").write_text(
        "{name: s, seed: 1, arrivals: {kind: poisson, duration_s: 600, rate_per_min: 60}}"
    )
    assert f": a sound {kind}\n" in call("validate", what)
    got = call_json("validate", what)
    assert got["kind"] == kind
    assert got["facts"]


def test_validate_says_how_much_an_experiment_is(finished: Path, call: Command) -> None:
    said = call("validate", finished / "small.yaml")
    assert "4 runs: 2 policies x 1 traces x 2 seeds" in said
    assert "2 workers serve 45.0 images/min at the base variant; the SLO is 12 s" in said


def test_policies_lists_all_with_their_parameters(call: Command, call_json: Any) -> None:
    said = call("policies")
    got = call_json("policies")
    assert [policy["name"] for policy in got] == registry.names()
    for policy in got:
        kind = registry.find(policy["name"])
        assert policy["class"] == f"{kind.__module__}:{kind.__name__}"
        assert policy["description"]
        assert policy["source"]
        assert [p["name"] for p in policy["parameters"]] == list(kind.Params.model_fields)
        assert f"{policy['name']}: {policy['description']}\n" in said
    (argus,) = call_json("policies", "argus")
    tolerance = next(p for p in argus["parameters"] if p["name"] == "tolerance")
    assert tolerance["default"] == 0.05
    assert tolerance["type"] == "number >= 0 < 1"
    assert "- tolerance: 0.05 (number >= 0 < 1). Relative quality that may be lost" in said


def test_policies_shows_one_of_a_module(call_json: Any) -> None:
    (got,) = call_json("policies", "argus_sim.policies.clipper:ClipperHA")
    assert got["description"] == "Always the base variant."


def test_one_broken_policy_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = registry.names()
    monkeypatch.setattr(registry, "names", lambda: [*names, "no.such:Policy"])
    assert main(["policies", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [policy["name"] for policy in json.loads(out)] == names
    assert err.startswith("note: policy 'no.such:Policy' cannot be imported")


# -- profiles ----------------------------------------------------------------------------------------------


def test_profiles(call: Command, call_json: Any) -> None:
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


def test_importing_a_profile(tmp_path: Path, call: Command, capsys: pytest.CaptureFixture[str]) -> None:
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


# -- traces ------------------------------------------------------------------------------------------------


def test_traces(call: Command, call_json: Any) -> None:
    assert [trace["name"] for trace in call_json("traces", "list")] == shipped_traces()
    assert "bursty: 156,431 images in 14 h; published (rate curve), synthetic\n" in call("traces", "list")
    got = call_json("traces", "show", "bursty")
    assert got["count"] == got["stats"]["count"] == 156_431
    assert got["stats"] == call_json("traces", "stats", "bursty")
    said = call("traces", "show", "bursty")
    assert "published (rate curve): " in said
    assert len([line for line in said.splitlines() if "█" in line]) == 1
    assert "156,431" in call("traces", "stats", "bursty")


def test_generating_the_shipped_trace_again(tmp_path: Path, call_json: Any) -> None:
    spec = Path(__file__).parent.parent / "traces" / "bursty.yaml"
    got = call_json("traces", "generate", spec, "--out", tmp_path / "again.parquet")
    assert got["file"] == str(tmp_path / "again.parquet")
    assert got["digest"] == Trace.read(tmp_path / "again.parquet").digest()


def test_importing_a_trace(tmp_path: Path, call: Command, call_json: Any) -> None:
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


def test_formats(call: Command, call_json: Any) -> None:
    got = {entry["name"]: entry for entry in call_json("traces", "formats")}
    assert set(got) >= {"gentd26-requests", "gentd26-gateway", "azure-llm-2023", "nab-twitter-volume", "csv"}
    assert "timestamp" in next(o for o in got["csv"]["options"] if o["name"] == "unit")["type"]
    assert "-o unit=s (" in re.sub(" +", " ", call("traces", "formats"))


# -- compare, table ----------------------------------------------------------------------------------------


def write_summary(folder: Path, rows: dict[str, list[float]]) -> Path:
    """A summary of one trace with the quality yields of each policy's seeds."""
    folder.mkdir()
    lines = [
        f"{policy},t,{seed},{value}," for policy, values in rows.items() for seed, value in enumerate(values)
    ]
    (folder / "summary.csv").write_text(
        "policy,trace,seed,quality_yield,share_of_bound\n" + "\n".join(lines) + "\n"
    )
    return folder


def test_comparing_two_runs(tmp_path: Path, call: Command, call_json: Any) -> None:
    a = write_summary(tmp_path / "a", {"p": [0.90, 0.70, 0.80], "q": [0.5, 0.6, 0.7], "only-a": [1.0]})
    b = write_summary(tmp_path / "b", {"p": [0.80, 0.61, 0.70], "q": [0.6, 0.5, 0.7]})
    p, q = call_json("compare", a, b)["rows"]
    assert (p["policy"], p["metric"], p["pairs"]) == ("p", "quality_yield", 3)
    assert p["difference"] == pytest.approx(0.29 / 3)
    assert p["significant"] is True
    assert q["difference"] == pytest.approx(0.0)
    assert q["significant"] is False
    said = call("compare", a, b)
    assert re.search(r"quality yield +0.800 +0.703 +0.097 ± 0.014 +\*", said)
    assert re.search(r"quality yield +0.600 +0.600 +0.000 ± 0.248 *$", said, re.MULTILINE)


def test_comparing_two_policies_of_a_run(tmp_path: Path, call: Command, call_json: Any) -> None:
    run = write_summary(tmp_path / "a", {"p": [0.90, 0.70, 0.80], "q": [0.80, 0.61, 0.70]})
    (row,) = call_json("compare", run, "--policies", "p", "q")["rows"]
    assert (row["policy"], row["a"], row["pairs"]) == ("p - q", pytest.approx(0.8), 3)
    assert row["significant"] is True
    (row,) = call_json("compare", run / "summary.csv", "--policies", "q", "p", "--confidence", "0.9999")["rows"]
    assert row["difference"] == pytest.approx(-0.29 / 3)
    assert row["significant"] is False


def test_comparing_with_one_seed_says_that_there_is_no_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(write_summary(tmp_path / "a", {"p": [0.9], "q": [0.8]}))
    assert main(["compare", run, "--policies", "p", "q"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"0.100 *$", out, re.MULTILINE)
    assert err == "note: with one common seed there is no interval\n"


def test_comparing_chosen_metrics(finished: Path, call_json: Any) -> None:
    arguments = ("compare", finished / "out", "--policies", "static", "argus")
    assert "quality_yield" in [row["metric"] for row in call_json(*arguments)["rows"]]
    chosen = call_json(*arguments, "--metric", "late", "--metric", "latency_p90_s")["rows"]
    assert [row["metric"] for row in chosen] == ["late", "latency_p90_s"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--metric", "quality"), "no metric 'quality' in both; did you mean 'quality_yield'?"),
        (("--policies", "p", "r"), "the run has no policy 'r'"),
    ],
)
def test_comparing_what_is_not_there(
    tmp_path: Path, arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(write_summary(tmp_path / "a", {"p": [0.9], "q": [0.8]}))
    both = arguments if "--policies" in arguments else (*arguments, "--policies", "p", "q")
    assert main(["compare", run, *both]) == 2
    assert says in capsys.readouterr().err


def test_comparing_a_summary_with_a_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_summary(tmp_path / "a", {"p": [0.9]})
    (run / "summary.csv").write_text("policy,trace,seed,late\np,t,1,0\np,t,1,0\n")
    assert main(["compare", str(run), str(run)]) == 2
    assert "has two rows for p t 1" in capsys.readouterr().err


def test_a_table_is_kept_up_to_date(finished: Path, tmp_path: Path, call: Command) -> None:
    printed = call("table", finished / "out")
    heading, rule, *rows = printed.splitlines()
    assert heading.startswith("| rush | quality yield | effective throughput (images/min) |")
    assert rule.count("---") == heading.count("|") - 1
    assert {row.split("|")[1].strip() for row in rows} == {"static", "argus"}
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- small table -->\nold\n<!-- end of small table -->\nafter\n")
    call("table", finished / "out", "--into", page, "--name", "small")
    once = page.read_text()
    assert once == f"before\n<!-- small table -->\n{printed}<!-- end of small table -->\nafter\n"
    call("table", finished / "out", "--into", page, "--name", "small")
    assert page.read_text() == once


def test_a_table_needs_its_place(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- small table --><!-- end of small table -->")
    assert main(["table", str(finished / "out"), "--into", str(page)]) == 2
    assert "has no place marked <!-- out table -->" in capsys.readouterr().err
    assert main(["table", str(finished / "out"), "--into", str(tmp_path / "nowhere.md")]) == 2
    assert "no such file" in capsys.readouterr().err


# -- the program as a whole --------------------------------------------------------------------------------


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands with their words."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*words, name))

    return walk(typer.main.get_command(app), ())


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_every_command_documents_its_flags_and_has_an_example(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == 0
    said = capsys.readouterr().out
    command = dict(commands())[words]
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} says nothing"
    if not hasattr(command, "commands"):
        assert "Example" in said
        assert f"argus-sim {' '.join(words)}" in re.sub(r"\s+", " ", said)
        assert {"as_json", "quiet"} <= {p.name for p in command.params} or words == ("table",)


def test_version(call: Command) -> None:
    assert call("--version") == f"argus-sim {argus_sim.__version__}\n"


def test_no_command_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "Usage: argus-sim" in out
    assert err == ""


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from argus_sim.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"numpy", "pandas", "scipy", "matplotlib", "sklearn", "pyarrow", "simpy", "torch"}


def test_installed_program() -> None:
    program = shutil.which("argus-sim", path=str(Path(sys.executable).parent))
    assert program
    done = subprocess.run([program, "traces", "show", "nobody"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no trace is called 'nobody'")


@pytest.mark.parametrize(
    ("typed", "offers"),
    [
        ("argus-sim pol", {"policies"}),
        ("argus-sim policies clip", {"clipper-ha", "clipper-ht"}),
        ("argus-sim run fi", {"fig7"}),
        ("argus-sim profiles show art", {"artefact-a100"}),
        ("argus-sim traces show d", {"diurnal"}),
        ("argus-sim traces import gen", {"gentd26-requests", "gentd26-gateway"}),
        ("argus-sim profiles import g", {"genai-bench"}),
        ("argus-sim validate b", {"bursty"}),
        ("argus-sim run --re", {"--resume"}),
    ],
)
def test_shell_completion(typed: str, offers: set[str]) -> None:
    words = typed.split()
    environment = os.environ | {
        "_ARGUS_SIM_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == offers


def test_an_error_of_the_system_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    path = str(write_experiment(tmp_path, content()))
    assert main(["run", path, "--out", str(tmp_path / "file" / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("module", [check, output, tables])
def test_examples_in_docstrings(module: Any) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed


def test_metrics_are_printed_with_their_headings(finished: Path, call: Command) -> None:
    said = call("compare", finished / "out", "--policies", "static", "argus", "--metric", "slo_violation_ratio")
    assert METRICS["slo_violation_ratio"].heading in said
