"""The traces of an experiment: files, models, several at once, and the prompts that go with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from argus_sim.errors import InputError
from argus_sim.experiment import Experiment
from argus_sim.experiment.lockfile import make_lock
from argus_sim.experiment.rehearsal import rehearse
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import simulate
from argus_sim.trace import Trace, find_trace
from tests.make_experiment import content, write_experiment

STEADY = {"name": "steady", "generate": {"kind": "poisson", "duration_s": 120, "rate_per_min": 60}}


def scene(folder: Path, **changes: object) -> Scene:
    return Scene.of(Experiment.load(write_experiment(folder, content() | changes)))


def test_a_model_gives_each_seed_arrivals_of_its_own(tmp_path: Path) -> None:
    made = scene(tmp_path, traces=["azure-conv-fit"])
    (config,) = made.experiment.traces
    one, again, other = (made.trace(config, seed) for seed in (1, 1, 2))
    assert one.digest() == again.digest() != other.digest()
    assert [part.kind for part in one.provenance] == ["recorded", "synthetic"]
    assert "trace azure-conv-fit" in make_lock(made)["inputs"]


def test_a_model_can_be_a_file_beside_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(find_trace("azure-code-fit").read_text())
    made = scene(tmp_path, traces=[{"name": "code", "file": "mine.yaml"}])
    trace = made.trace(made.experiment.traces[0], 1)
    assert trace.name == "code"
    assert len(trace) == pytest.approx(8819, rel=0.05)


def test_a_trace_can_be_a_folder_of_a_format(tmp_path: Path) -> None:
    (tmp_path / "families").mkdir()
    for name in ("yolo", "resnet"):
        (tmp_path / "families" / f"{name}.txt").write_text("500,1,300\n1500,1,300\n2500,1,300\n")
    made = scene(tmp_path, traces=[{"name": "f", "file": "families", "format": "proteus"}])
    assert len(made.trace(made.experiment.traces[0], 1)) == 6
    before = make_lock(made)["inputs"]["trace f"]
    assert make_lock(made)["inputs"]["trace f"] == before
    (tmp_path / "families" / "yolo.txt").rename(tmp_path / "families" / "gpt.txt")
    assert make_lock(made)["inputs"]["trace f"] != before


def test_files_among_options_are_found_beside_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("0,1\n500,2\n")
    (tmp_path / "texts.txt").write_text("a red cube\ntwo owls\n")
    config = {"name": "d", "file": "t.csv", "format": "diffserve", "options": {"prompts": "texts.txt"}}
    made = scene(tmp_path, traces=[config, {"name": "both", "superpose": [config]}])
    for trace in made.experiment.traces:
        assert made.trace(trace, 1).prompt == ("a red cube", "two owls")
    before = make_lock(made)["inputs"]
    (tmp_path / "texts.txt").write_text("a blue cube\ntwo owls\n")
    after = make_lock(made)["inputs"]
    assert [what for what in before if after[what] != before[what]] == ["trace d prompts"]


def test_superposed_traces_may_be_rescaled_one_by_one_and_as_a_whole(tmp_path: Path) -> None:
    parts = ["bursty", {"name": "twice", "file": "diurnal", "scale_rate": 2}]
    made = scene(tmp_path, traces=[{"name": "both", "superpose": parts, "clip_s": [0, 3600]}])
    trace = made.trace(made.experiment.traces[0], 1)
    bursty, diurnal = (Trace.read(find_trace(name)) for name in ("bursty", "diurnal"))
    assert (trace.name, trace.duration_s) == ("both", 3600.0)
    assert abs(len(trace) - len(bursty.clip(0, 3600)) - 2 * len(diurnal.clip(0, 3600))) <= 2
    assert set(bursty.clip(0, 3600).arrival_s) <= set(trace.arrival_s)
    assert {"trace bursty", "trace twice"} <= set(make_lock(made)["inputs"])


def test_each_superposed_trace_says_which_stream_it_was_drawn_from(tmp_path: Path) -> None:
    part = {"generate": {"kind": "poisson", "rate_per_min": 60, "duration_s": 600}}
    parts = [{"name": name, **part} for name in "ab"]
    made = scene(tmp_path, traces=[{"name": "both", "superpose": parts}])
    one, other = made.trace(made.experiment.traces[0], 1).provenance
    assert one != other


@pytest.mark.parametrize("source", [{}, {"file": "bursty", "superpose": ["diurnal"]}])
def test_a_trace_has_one_source(tmp_path: Path, source: dict[str, object]) -> None:
    with pytest.raises(InputError, match="needs one of file, generate and superpose"):
        scene(tmp_path, traces=[{"name": "none", **source}])


def test_prompts_of_an_experiment_change_what_is_asked_for_and_not_when(tmp_path: Path) -> None:
    records = []
    for changes in ({}, {"prompts": {"zipf": 3.0}}):
        made = scene(tmp_path, traces=[STEADY], **changes)
        (config,) = made.experiment.traces
        records.append(simulate(made, made.experiment.policies[0], made.trace(config, 1), 1))
    uniform, popular = records
    assert uniform.arrival_s.tolist() == popular.arrival_s.tolist()
    assert uniform.prompt.tolist() != popular.prompt.tolist()


def test_bursts_need_more_than_one_window(tmp_path: Path) -> None:
    made = scene(tmp_path, traces=[STEADY], prompts={"bursts": {"window_s": 90}})
    with pytest.raises(InputError, match=r"bursts.window_s: 90 s are all of the 120 s of trace 'steady'"):
        rehearse(made)
    rehearse(scene(tmp_path, traces=[STEADY], prompts={"bursts": {"window_s": 80}}))


@pytest.mark.parametrize(
    ("cluster", "where"),
    [
        ({"faults": [{"kind": "random", "mtbf_s": 9, "mttr_s": 9}, {"kind": "crash", "at_s": 120}]}, "faults.1"),
        ({"cache": {"trouble": [{"at_s": 200, "for_s": 60}]}}, "cache.trouble.0"),
    ],
)
def test_trouble_comes_before_the_end(tmp_path: Path, cluster: dict[str, object], where: str) -> None:
    made = scene(tmp_path, traces=[STEADY], cluster=cluster)
    with pytest.raises(InputError, match=rf"cluster\.{where}\.at_s: is .* every trace has ended by 120 s"):
        rehearse(made)
    longer = {**STEADY, "name": "longer", "clip_s": None, "scale_time": 2.0}
    rehearse(scene(tmp_path, traces=[STEADY, longer], cluster=cluster))


def test_a_misspelt_key_of_prompts_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prompts\.session: |unknown key 'session'; did you mean 'sessions'"):
        scene(tmp_path, prompts={"session": {}})
