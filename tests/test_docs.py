"""The documentation builds without a warning, and what it tells its readers to do works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from argus_sim.policies import registry
from tests.run_docs import blocks, commands, run_command, run_page, typed_elsewhere
from tests.test_purity import LAYERS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
#: The pages of the site; some are kept beside what they are about.
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(
        ROOT / folder / "README.md"
        for folder in ("experiments", "traces", "calibration/profiles", "calibration/shapes")
    ),
]
#: Those that say what to do without torch; tests/calibration/test_shapes.py does what the others say.
WITH_COMMANDS = [
    page
    for page in PAGES
    if any(b.run == "python" or (b.language == "sh" and b.run == "yes") for b in blocks(page.read_text("utf-8")))
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra: docs)")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_it_fetches_nothing(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"(.*?)\"", page.read_text("utf-8"))
        fetched += re.findall(
            r"<link[^>]*rel=\"(?:stylesheet|preconnect)\"[^>]*href=\"(.*?)\"", page.read_text("utf-8")
        )
        assert not [address for address in fetched if address.startswith(("http", "//"))], page


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    import typer

    from argus_sim.cli import app
    from calibration.cli import app as calibrate

    text = (site / "cli.html").read_text("utf-8")

    def walk(command: object, name: str) -> None:
        inside = getattr(command, "commands", None)
        if inside is not None:
            for word, child in inside.items():
                walk(child, f"{name} {word}")
            if not command.invoke_without_command:  # type: ignore[attr-defined]
                return
        assert f">{name}<" in text
        for parameter in command.params:  # type: ignore[attr-defined]
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert parameter.opts[0] in text, f"{name} {parameter.opts}"

    walk(typer.main.get_command(app), "argus-sim")
    walk(typer.main.get_command(calibrate), "argus-calibrate")


def test_every_policy_has_a_page_with_its_parameters(site: Path) -> None:
    for name in registry.names():
        text = (site / "policies" / f"{name}.html").read_text("utf-8")
        for parameter in registry.find(name, where="test").Params.model_fields:
            assert f"<code>{parameter}</code>" in text, (name, parameter)
        if name not in ("static", "argus-x"):  # nobody has published those
            assert "What was left unsaid" in text


def test_formulas_are_drawn_by_the_browser(site: Path) -> None:
    text = (site / "bound.html").read_text("utf-8")
    assert text.count("<math") > 30
    assert "$" not in re.sub(r"<(script|code|pre).*?</\1>", "", text, flags=re.DOTALL)


def at_hand(page: Path, folder: Path) -> None:
    """Put into a folder what a page takes for granted."""
    match page.relative_to(ROOT).as_posix():
        case "docs/python.md":  # it goes on where the tutorial ended
            tutorial = (DOCS / "tutorial.md").read_text("utf-8")
            (yaml,) = [b for b in blocks(tutorial) if b.file == "mine.yaml"]
            (folder / "mine.yaml").write_text(yaml.text)
        case "traces/README.md":
            (folder / "traces").mkdir()
            for name in ("bursty.yaml", "diurnal.yaml"):
                shutil.copy(ROOT / "traces" / name, folder / "traces")


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_says_works(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_hand(page, tmp_path)
    text = page.read_text("utf-8")
    assert run_page(text, tmp_path, monkeypatch) > 0
    printed = capsys.readouterr().out
    for block in blocks(text):
        assert block.run != "printed" or block.text in printed


#: What the README's placeholders are filled with.
FILLED = {"EXP": "fig7", "FILE": "step_down.yaml", "show NAME": "show {0}", "NAME": "argus"}


def typed_in(text: str) -> list[list[str]]:
    """The commands of a README, which indents them: without what is optional, and placeholders filled in."""
    found = []
    for line in re.findall(r"^    ((?:\w+=\S+ )?argus-sim [^\n]*)", text, re.MULTILINE):
        line = re.sub(r" \[--.*?\](?= |$)", "", line.partition("  #")[0])
        for command in line.removeprefix("argus-sim ").split(" | ") if " | " in line else [line]:
            command = command if "argus-sim" in command else f"argus-sim {command}"
            shown = "artefact-a100" if "profiles" in command else "bursty"
            for placeholder, value in FILLED.items():
                command = command.replace(placeholder, value.format(shown))
            found += commands(command)
    return found


def test_the_commands_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    found = typed_in(text) + [shlex.split(line) for line in re.findall(r"`(argus-sim run runs/[^`]*)`", text)]
    assert {words[words.index("argus-sim") + 1] for words in found} >= {
        "run", "compare", "watch", "trace", "validate", "serve", "policies", "profiles", "traces",
    }  # fmt: skip
    assert ["argus-sim", "run", "runs/fig7/experiment.lock.yaml", "--out", "runs/again"] in found
    monkeypatch.chdir(tmp_path)
    (policy,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "step_down.py").write_text(policy)
    (tmp_path / "step_down.yaml").write_text((ROOT / "experiments" / "fig7.yaml").read_text("utf-8"))
    for folder in ("runs/a", "runs/b"):
        run_command(["argus-sim", "run", "fig7", "--out", folder], monkeypatch)
    for words in found:
        run_command(words, monkeypatch)


def test_make_fig7_is_the_command_that_the_readme_says() -> None:
    done = subprocess.run(["make", "-n", "fig7"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "argus-sim run experiments/fig7.yaml" in done.stdout


def test_the_architecture_is_that_of_the_code() -> None:
    """Its table has the layers that imports are held to, and what it names stands in the file that it says."""
    text = (DOCS / "architecture.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    layers = [{*re.findall(r"`(\w+)(?:/|\.py)`", row)} for row in rows]
    assert layers == [layer - {"__version__"} for layer in LAYERS]
    named = re.findall(r"`([\w.]+)`\s+\(`([\w/]+\.py)`\)", text)
    assert len(named) > 20
    for name, file in named:
        source = (ROOT / "argus_sim" / file).read_text("utf-8")
        for part in name.split("."):
            assert re.search(rf"^\s*(?:def|class) {part}\b", source, re.MULTILINE), f"{name} in {file}"


def test_a_command_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="argus-sim traces show nosuch"):
        run_page("```sh\nargus-sim traces show nosuch\n```\n", tmp_path, monkeypatch)
    with pytest.raises(AssertionError, match="mark the block"):
        run_page("```sh\nrm -rf x\n```\n", tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text("utf-8")
    assert typed_elsewhere(text) == [], "put it into a block of sh, so that it is run"
    for block in blocks(text):
        assert block.language not in ("console", "bash", "shell"), "call it sh, so that it is run"
        for test in re.findall(r"tests/\S+\.py", block.run):
            assert (ROOT / test).exists(), test


def test_a_command_outside_of_a_block_is_noticed() -> None:
    page = "Do\n\n    A=b argus-sim watch x\n\n```text\npip install x\n```\n\n```sh\nmake fig7\n```\n"
    assert typed_elsewhere(page) == ["pip install x", "A=b argus-sim watch x"]
