"""``argus-sim size``: what it prints, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from argus_sim.cli import main
from argus_sim.experiment import sizing
from tests.make_experiment import content, write_experiment


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``small.yaml`` and its sizes in ``out``."""
    folder = tmp_path_factory.mktemp("sized")
    assert main(["size", str(write_experiment(folder)), "--out", str(folder / "out"), "-j", "1", "-q"]) == 0
    return folder


def of(folder: Path, *arguments: str) -> list[str]:
    """The command again, with the runs that are there."""
    return [
        "size",
        str(folder / "small.yaml"),
        "--out",
        str(folder / "out"),
        "--jobs",
        "1",
        "--resume",
        *arguments,
    ]


def test_it_says_the_same_as_text_and_as_json(
    sized: Path, call: Callable[..., str], call_json: Callable[..., Any]
) -> None:
    said, told = call(*of(sized)), call_json(*of(sized))
    assert said.startswith("The fewest GPUs with at most 1 % violations:\n")
    assert "These numbers rest on what is synthetic (" in said
    assert f"Results: {sized / 'out' / 'sizing.csv'}" in said
    assert told["promise"] == {"slo_violation_ratio": 0.01, "quality_yield": None}
    assert (told["kind"], told["largest"], told["experiment"]) == (None, 512, "small")
    assert "trace rush" in told["provenance"]["synthetic"]
    for answer in told["sizing"]:
        lines = map(str.split, said.splitlines())
        (line,) = [words for words in lines if words[:2] == ["rush", answer["policy"]]]
        assert line[2] == str(answer["workers"])
        assert line[3] == f"{100 * answer['slo_violation_ratio']:.2f}"
        assert line[5] == f"{100 * answer['slo_violation_ratio_with_one_fewer']:.2f}"
        assert line[6:] == [
            f"{answer['quality_yield']:.3f}",
            f"{answer['quality_yield_with_one_fewer']:.3f}",
            f"{100 * answer['utilisation']:.1f}",
            f"{answer['on_time_per_gpu_hour']:,.0f}",
        ]
        tried = {row["workers"]: row["meets"] for row in told["sizes"] if row["policy"] == answer["policy"]}
        assert tried[answer["workers"]]
        assert not tried[answer["workers"] - 1]


def test_it_tells_what_no_size_keeps(
    sized: Path, call: Callable[..., str], call_json: Callable[..., Any]
) -> None:
    out = ("--out", str(sized / "more"))
    said = call(*of(sized, *out, "--quality", "0.999", "--largest", "9"))
    assert "with at most 1 % violations and a quality yield of at least 0.999:" in said
    assert said.count("none up to 9 ") == 2
    came = (f"with {size} 0.00 % violations and a quality yield of 0.966" for size in (8, 9))
    assert f"static on rush: {', '.join(came)}." in said
    said = call(*of(sized, *out, "--largest", "1"))
    assert said.count("more than 1 ") == 2
    answers = call_json(*of(sized, *out, "--largest", "1"))["sizing"]
    assert [(a["workers"], a["broken"], a["quality_yield"]) for a in answers] == [(None, "violations", None)] * 2


def test_settings_and_seeds(sized: Path, tmp_path: Path, call_json: Callable[..., Any]) -> None:
    told = call_json(
        *of(sized, "--out", str(tmp_path), "--set", "policies=[static]", "--seeds", "1", "--violations", "50")
    )
    assert [row["policy"] for row in told["sizing"]] == ["static"]
    assert told["sizing"][0]["slo_violation_ratio"] <= 0.5
    assert {path.name for path in tmp_path.glob("*/static/rush/*")} == {"3"}


def test_the_default_folder_is_not_that_of_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path, content() | {"policies": ["static"]})
    assert main(["size", "small.yaml", "--violations", "100", "--largest", "1", "-j", "1", "--quiet"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["small-size"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--violations", "101"), "'--violations': Input should be less than or equal to 100"),
        (("--quality", "1.5"), "'--quality': Input should be less than or equal to 1"),
        (("--largest", "0"), "'--largest': Input should be greater than or equal to 1"),
        (("--kind", "new"), "error: --kind: the cluster has no kind 'new'"),
        (
            ("--set", "traces.0.peak={of_capacity: 1, window_s: 30}"),
            "trace 'rush': peak: makes the load a multiple",
        ),
    ],
)
def test_what_is_refused(
    sized: Path, tmp_path: Path, arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(of(sized, "--out", str(tmp_path / "out"), *arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_its_folder_is_for_other_commands_to_look_into(
    sized: Path, call: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = next((sized / "out").glob("*policy=argus*"))
    assert "2 of 2 runs, ended" in call("watch", folder)
    assert call("table", folder).startswith("| rush |")
    assert main(["watch", str(sized / "out")]) == 2
    assert "holds the sizes of argus-sim size; watch one of its folders" in capsys.readouterr().err


@pytest.mark.parametrize(("trouble", "code"), [(KeyboardInterrupt(), 130), (BrokenProcessPool(), 1)])
def test_a_search_that_is_cut_off_says_how_to_go_on(
    sized: Path,
    trouble: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def cut_off(*arguments: Any, on_more: Callable[[int, int], None], **options: Any) -> None:
        on_more(4, 0)
        raise trouble

    monkeypatch.setattr(sizing, "size_experiment", cut_off)
    assert main(of(sized)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("finished runs are kept. To go on: the same command with --resume\n")


def test_progress_is_on_stderr(sized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(of(sized, "--out", str(tmp_path / "out"), "--violations", "100", "--set", "policies=[static]")) == 0
    )
    assert capsys.readouterr().err == "4 of 4 runs; figure\n"
