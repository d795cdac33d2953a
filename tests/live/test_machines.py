"""Where workers run: what an experiment says of it, and what travels with messages. Needs no Ray."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest

from argus_sim.cli import main
from argus_sim.errors import InputError
from argus_sim.experiment import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import simulate
from argus_sim.live.freight import pack, unpack
from argus_sim.live.painter import Carried, Load, Paint, Painted, Wish
from argus_sim.live.ray_cluster import import_ray
from argus_sim.real_workers import PipelinesConfig, machines
from argus_sim.serve import choose_policy
from tests.live.make_processes import empty_zoo
from tests.make_experiment import write_experiment

RAY = ("cluster.kind=ray", "cluster.address='127.0.0.1:6379'", "cluster.cpus_per_worker=0.5")


def test_a_simulation_is_the_same_wherever_workers_would_run(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    finished = []
    for settings in ((), RAY):
        scene = Scene.of(Experiment.load(path, settings))
        trace = scene.trace(scene.experiment.traces[0], 3)
        finished.append(simulate(scene, choose_policy(scene, "static"), trace, 3).finish_s)
    assert len(finished[0])
    np.testing.assert_array_equal(*finished)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RAY[1:2], "address is for kind: ray"),
        (RAY[2:], "cpus_per_worker is for kind: ray"),
        (("cluster.kind=rai",), "rai"),
        (("cluster.kind=ray", "cluster.cpus_per_worker=0"), "cpus_per_worker"),
    ],
)
def test_what_an_experiment_cannot_say(tmp_path: Path, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Experiment.load(write_experiment(tmp_path), settings)


def test_an_address_needs_workers_on_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_experiment(tmp_path)
    address = ("--ray-address", "127.0.0.1:6379")
    assert main(["serve", str(path), "--policy", "static", *address]) == 2
    assert "--ray-address: is for --workers diffusers" in capsys.readouterr().err
    config = PipelinesConfig("shapes", ray_address=address[1])
    with pytest.raises(InputError, match="--ray-address: is for workers on Ray"):
        machines(Scene.of(Experiment.load(path)), config, empty_zoo())


def test_without_ray_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^cluster\.kind: .* pip install 'argus-sim\[live,ray\]'$"):
        import_ray(None)


def test_latents_travel_with_messages(tmp_path: Path) -> None:
    there, gone = tmp_path / "1", tmp_path / "2"
    there.write_bytes(b"latents")
    made, unwritable = tmp_path / "3", tmp_path / "nowhere" / "4"

    async def test() -> None:
        wishes = (Wish("a", 1, start=there), Wish("b", 2, start=gone), Wish("c", 3, keep=made))
        packed = await pack(Paint(5, wishes))
        assert packed == Paint(
            5,
            (Wish("a", 1, start=Carried(there, b"latents")), Wish("b", 2, start=Carried(gone, b"")), wishes[2]),
            carry=True,
        )
        assert await pack(Load("m")) == Load("m")
        kept = (Carried(made, b"new"), Carried(unwritable, b"lost"))
        assert await unpack(Painted((b"png",), kept, (gone,))) == Painted((b"png",), (made,), (gone,))
        assert made.read_bytes() == b"new"
        assert await unpack(Painted((b"png",))) == Painted((b"png",))

    asyncio.run(test())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]
