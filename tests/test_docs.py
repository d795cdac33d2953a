"""The documentation builds without a warning, and what it tells its readers to do works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from argus_sim.policies import registry
from tests.run_docs import blocks, commands, run_command, run_page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
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

    text = (site / "cli.html").read_text("utf-8")

    def walk(command: object, name: str) -> None:
        inside = getattr(command, "commands", None)
        if inside is not None:
            for word, child in inside.items():
                walk(child, f"{name} {word}")
            return
        assert f">{name}<" in text
        for parameter in command.params:  # type: ignore[attr-defined]
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert parameter.opts[0] in text, f"{name} {parameter.opts}"

    walk(typer.main.get_command(app), "argus-sim")


def test_every_policy_has_a_page_with_its_parameters(site: Path) -> None:
    for name in (
        "static",
        "clipper-ha",
        "clipper-ht",
        "infaas",
        "sommelier",
        "proteus",
        "nirvana",
        "pac",
        "argus",
    ):
        text = (site / "policies" / f"{name}.html").read_text("utf-8")
        for parameter in registry.find(name, where="test").Params.model_fields:
            assert f"<code>{parameter}</code>" in text, (name, parameter)
        if name != "static":
            assert "What was left unsaid" in text


def test_formulas_are_drawn_by_the_browser(site: Path) -> None:
    text = (site / "bound.html").read_text("utf-8")
    assert text.count("<math") > 30
    assert "$" not in re.sub(r"<(script|code|pre).*?</\1>", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_what_a_page_says_works(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name == "python.md":  # it goes on where the tutorial ended
        tutorial = (DOCS / "tutorial.md").read_text("utf-8")
        (yaml,) = [b for b in blocks(tutorial) if b.file == "mine.yaml"]
        (tmp_path / "mine.yaml").write_text(yaml.text)
    assert run_page(page.read_text("utf-8"), tmp_path, monkeypatch) > 0


def typed_in(text: str) -> list[list[str]]:
    """The commands of a README, which indents them; lines with ``[`` or ``|`` in them say what there is."""
    lines = re.findall(r"^    ((?:\w+=\S+ )?argus-sim [^\n]*)", text, re.MULTILINE)
    known = [line for line in lines if not re.search(r"(?:^| )(?:\[--|\||[A-Z]{3,}(?: |$))", line)]
    return [words for line in known for words in commands(line)]


def test_the_commands_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    found = typed_in(text)
    assert len(found) >= 3
    monkeypatch.chdir(tmp_path)
    (policy,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "step_down.py").write_text(policy)
    for folder in ("runs/a", "runs/b"):
        run_command(["argus-sim", "run", "fig7", "--out", folder], monkeypatch)
    for words in found:
        run_command(words, monkeypatch)


def test_a_command_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="argus-sim traces show nosuch"):
        run_page("```sh\nargus-sim traces show nosuch\n```\n", tmp_path, monkeypatch)
    with pytest.raises(AssertionError, match="mark the block"):
        run_page("```sh\nrm -rf x\n```\n", tmp_path, monkeypatch)


def test_every_command_is_run_or_says_why_not() -> None:
    for page in PAGES:
        for block in blocks(page.read_text("utf-8")):
            if block.language in ("sh", "console", "bash", "shell"):
                assert block.language == "sh", f"{page.name}: call it sh, so that it is run"
            typed = shlex.split(block.text, comments=True)[:1] if block.language == "text" else []
            assert typed != ["argus-sim"], f"{page.name}: a command in a text block is not run"
