"""What a worker process does, in this one: the zoo's pipelines, exactly as they were calibrated."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("torch", "diffusers", "transformers", "torchmetrics", "DeepCache"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the calibrate extra: {package}", allow_module_level=True)

import torch  # noqa: E402
from safetensors.torch import load, load_file  # noqa: E402

from argus_sim.live.painter import Carried, Load, Loaded, Paint, Painted, Painter, Wish, prepare  # noqa: E402
from argus_sim.live.zoo import LiveZoo, live_zoo  # noqa: E402
from argus_sim.profile import Profile  # noqa: E402
from calibration.latency import Workload  # noqa: E402
from tests.calibration.conftest import one_thread  # noqa: E402, F401

TEXTS = ("a large red circle left of a small blue square", "a green cross", "a purple triangle")


@pytest.fixture(scope="module")
def zoo() -> LiveZoo:
    return live_zoo(Profile.load("shapes-cpu"), "shapes")


@pytest.fixture
def painter(zoo: LiveZoo) -> Iterator[Painter]:
    made = Painter(zoo, "cpu")
    made.load("shapes-large")
    yield made
    made._stack.close()


def of(zoo: LiveZoo, name: str) -> int:
    return [recipe.name for recipe in zoo.recipes].index(name)


def test_skipping_steps_from_its_own_latent_gives_the_same_bytes(
    zoo: LiveZoo, painter: Painter, tmp_path: Path
) -> None:
    """In batches: each image starts from the file that is its own."""
    files = [tmp_path / f"{i}.latents.safetensors" for i in range(3)]
    full = painter.paint(
        zoo.recipes[of(zoo, "shapes-large")],
        [Wish(text, 100 + i, keep=file) for i, (text, file) in enumerate(zip(TEXTS, files, strict=True))],
    )
    assert full.kept == tuple(files)
    assert len(set(full.images)) == 3
    for steps in (5, 25):
        recipe = zoo.recipes[of(zoo, f"shapes-large/ac-{steps}")]
        again = painter.paint(recipe, [Wish(t, 0, start=f) for t, f in zip(TEXTS, files, strict=True)])
        assert again.images == full.images
    others = painter.paint(
        recipe, [Wish(text, 0, start=file) for text, file in zip(TEXTS, files[::-1], strict=True)]
    )
    assert others.images[0] != full.images[0]
    assert others.images[1] == full.images[1]
    assert not list(tmp_path.glob("*.part"))


def test_a_disk_that_fails_costs_no_image(zoo: LiveZoo, painter: Painter, tmp_path: Path) -> None:
    full, deep = zoo.recipes[of(zoo, "shapes-large")], zoo.recipes[of(zoo, "shapes-large/ac-25")]
    nowhere, torn = tmp_path / "gone" / "1.latents.safetensors", tmp_path / "2.latents.safetensors"
    torn.write_bytes(b"torn")
    made = painter.paint(full, [Wish(TEXTS[0], 5, keep=nowhere)])
    assert made.kept == ()
    again = painter.paint(deep, [Wish(TEXTS[0], 5, start=nowhere), Wish(TEXTS[1], 6, start=torn)])
    assert again.unreadable == (nowhere, torn)
    assert again.images[0] == painter.paint(full, [Wish(TEXTS[0], 5), Wish(TEXTS[1], 6)]).images[0]


def test_an_image_of_no_numbers_costs_the_others_nothing(
    zoo: LiveZoo, painter: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision has them now and then. Its latents are of no use either."""
    call = Workload.call

    def spoil(self: Workload, *args: Any, **options: Any) -> Any:
        images = np.array(call(self, *args, **options))
        images[1, 0, 0] = np.nan
        return images

    full = zoo.recipes[of(zoo, "shapes-large")]
    good = painter.paint(full, [Wish(text, 5) for text in TEXTS])
    monkeypatch.setattr(Workload, "call", spoil)
    made = painter.paint(full, [Wish(text, 5, keep=tmp_path / f"{i}.st") for i, text in enumerate(TEXTS)])
    assert made.images == (good.images[0], None, good.images[2])
    assert made.kept == (tmp_path / "0.st", tmp_path / "2.st")


def test_latents_that_travel_are_those_on_disk(zoo: LiveZoo, painter: Painter, tmp_path: Path) -> None:
    full, deep = zoo.recipes[of(zoo, "shapes-large")], zoo.recipes[of(zoo, "shapes-large/ac-25")]
    file, other = tmp_path / "1.latents.safetensors", tmp_path / "2.latents.safetensors"
    made = painter.paint(full, [Wish(TEXTS[0], 5, keep=file)])
    carried = painter.paint(full, [Wish(TEXTS[0], 5, keep=other)], carry=True)
    (kept,) = carried.kept
    assert isinstance(kept, Carried)
    assert kept.file == other
    there, here = load_file(file), load(kept.content)  # the entries of a file's header have no order
    assert there.keys() == here.keys()
    assert all(torch.equal(there[step], here[step]) for step in there)
    assert not other.exists()
    again = painter.paint(deep, [Wish(TEXTS[0], 0, start=kept)])
    assert again.images == made.images
    torn = painter.paint(deep, [Wish(TEXTS[0], 5, start=Carried(other, content)) for content in (b"", b"torn")])
    assert torn.unreadable == (other, other)


def test_prompts_may_be_anything(painter: Painter, zoo: LiveZoo) -> None:
    wishes = [Wish(text, 1) for text in ("x" * 32_000, "🦊 лиса", " ", "a\0b", "<|endoftext|>")]
    assert len(painter.paint(zoo.recipes[of(zoo, "shapes-large/steps-2")], wishes).images) == 5


def test_approximations_come_and_go_without_a_trace(zoo: LiveZoo, painter: Painter) -> None:
    wish = [Wish(TEXTS[0], 5)]
    images = [
        painter.paint(zoo.recipes[of(zoo, name)], wish).images[0]
        for name in (
            "shapes-large", "shapes-large/deepcache-3", "shapes-large/steps-3", "shapes-large/steps-2",
            "shapes-large/deepcache-3", "shapes-large",
        )
    ]  # fmt: skip
    assert images[0] == images[5]
    assert images[1] == images[4]
    assert len(set(images)) == 4


def test_a_model_is_gone_when_the_next_one_comes(zoo: LiveZoo, painter: Painter) -> None:
    painter.paint(zoo.recipes[of(zoo, "shapes-large/deepcache-3")], [Wish(TEXTS[0], 5)])
    assert painter._work is not None
    old = weakref.ref(painter._work.pipe.unet)
    painter.load("shapes-tiny")
    gc.collect()
    assert old() is None
    assert painter.paint(zoo.recipes[of(zoo, "shapes-tiny")], [Wish(TEXTS[0], 5)]).images


def test_messages_are_answered(zoo: LiveZoo) -> None:
    handle = prepare(zoo, 0)
    assert handle(Load("shapes-tiny")) == Loaded("shapes-tiny")
    answer = handle(Paint(of(zoo, "shapes-tiny"), (Wish("a", 1), Wish("a", 1))))
    assert isinstance(answer, Painted)
    assert answer.images[0] == answer.images[1]
    with pytest.raises(TypeError, match="no message for a worker"):
        handle("what?")


def test_the_host_imports_no_torch() -> None:
    script = (
        "import sys, argus_sim.serve; from argus_sim.live.zoo import live_zoo;"
        "from argus_sim.profile import Profile;"
        "live_zoo(Profile.load('shapes-cpu'), 'shapes');"
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
