"""What MkDocs asks while it builds the site: pages and tables made from the code, and formulas without a script.

Used by mkdocs.yml; part of no package.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import latex2mathml.converter
import typer
from mkdocs.structure.files import File

from argus_sim.cli import app
from argus_sim.policies import registry
from calibration.cli import app as calibrate

ROOT = Path(__file__).parent.parent
#: Pages that are kept elsewhere in the repository: page -> file.
ELSEWHERE = {
    "experiments.md": "experiments/README.md",
    "shipped_profiles.md": "calibration/profiles/README.md",
    "shipped_traces.md": "traces/README.md",
    "shapes_zoo.md": "calibration/shapes/README.md",
}


def on_files(files: Any, config: Any) -> Any:
    """Add what is generated, or lives elsewhere."""
    pages = {page: _moved(ROOT / file) for page, file in ELSEWHERE.items()}
    pages["cli.md"] = command_line()
    for file in ELSEWHERE.values():
        for picture in (ROOT / file).parent.glob("*.png"):
            files.append(File.generated(config, picture.name, abs_src_path=str(picture)))
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    there = {file.src_uri for file in files}
    config.nav = _only(config.nav, there)
    return files


def _moved(file: Path) -> str:
    """A page that is kept elsewhere, with its links to other such pages as they are in the site."""
    pages = {(ROOT / path).resolve(): page for page, path in ELSEWHERE.items()}

    def link(found: re.Match[str]) -> str:
        return "](" + pages.get((file.parent / found[1]).resolve(), found[1])

    return re.sub(r"\]\(([^)#:]+)", link, file.read_text("utf-8"))


def _only(nav: list[Any], there: set[str]) -> list[Any]:
    """The navigation without pages that do not exist."""
    kept: list[Any] = []
    for item in nav:
        if isinstance(item, dict):
            ((title, inside),) = item.items()
            if isinstance(inside, list):
                kept.append({title: _only(inside, there)})
            elif inside in there:
                kept.append(item)
        elif item in there:
            kept.append(item)
    return kept


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Tables of parameters from the code; formulas as MathML, which browsers draw by themselves."""
    markdown = re.sub(r"<!-- parameters: (\S+) -->", lambda found: parameters(found[1]), markdown)
    if "$$" not in markdown:
        return markdown
    parts = re.split(r"(```.*?```|`[^`\n]*`)", markdown, flags=re.DOTALL)
    return "".join(part if part.startswith("`") else _formulas(part) for part in parts)


def _formulas(text: str) -> str:
    def mathml(display: str) -> Any:
        return lambda found: latex2mathml.converter.convert(found[1].strip(), display=display)

    text = re.sub(r"\$\$(.+?)\$\$", mathml("block"), text, flags=re.DOTALL)
    return re.sub(r"(?<!\\)\$(?=\S)(.+?)(?<=\S)\$", mathml("inline"), text)


def parameters(policy: str) -> str:
    """The parameters of a policy as a table."""
    schema = registry.find(policy, where="docs").Params.model_json_schema()
    fields = schema.get("properties", {})
    if not fields:
        return "## Parameters\n\nNone."
    lines = ["## Parameters", "", "| parameter | default | |", "| --- | --- | --- |"]
    for name, field in fields.items():
        default = json.dumps(field.get("default"), ensure_ascii=False)
        lines.append(f"| `{name}` | `{default}` | {field.get('description', '')} |")
    return "\n".join(lines)


def command_line() -> str:
    """The reference of the command line, from the commands themselves."""
    lines = [
        "# Command line",
        "",
        "stdout is the result, stderr the progress and what is wrong. What is wrong with an input is one",
        "message and exit code 2. `argus-sim --install-completion` completes commands and names in the shell.",
    ]
    programs: dict[str, Any] = {"argus-sim": app, "argus-calibrate": calibrate}
    commands = (sorted(_commands(typer.main.get_command(root), name)) for name, root in programs.items())
    for name, command in chain.from_iterable(commands):
        lines += ["", f"## {name}", "", _text(command.help)]
        words = [p.metavar or (p.name or "").upper() for p in command.params if p.param_type_name == "argument"]
        words = [w if p.required else f"[{w}]" for w, p in zip(words, _arguments(command), strict=True)]
        lines += ["", "```text", " ".join([name, *words, "[OPTIONS]"]), "```", ""]
        rows = []
        for parameter in command.params:
            if parameter.name == "help":
                continue
            what = ", ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.metavar
            takes = (
                ""
                if getattr(parameter, "is_flag", False) or what == parameter.metavar
                else parameter.metavar or ""
            )
            text = _text(getattr(parameter, "help", "")).replace("|", "\\|")
            rows.append(f"| `{what or parameter.name}`{f' {takes}' if takes else ''} | {text} |")
        if rows:
            lines += ["| argument | |", "| --- | --- |", *rows]
        if command.epilog:
            head, *examples = command.epilog.splitlines()
            lines += ["", head, "", "```text", *(line.removeprefix("- ") for line in examples if line), "```"]
    return "\n".join(lines) + "\n"


def _arguments(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "argument"]


def _commands(command: Any, name: str) -> list[tuple[str, Any]]:
    inside = getattr(command, "commands", None)
    if inside is None:
        return [(name, command)]
    found = [(name, command)] if command.invoke_without_command else []  # it does something by itself
    return found + [pair for word, child in inside.items() for pair in _commands(child, f"{name} {word}")]


def _text(text: str | None) -> str:
    return re.sub(r"[ \t]*\n[ \t]*", "\n", (text or "").strip())
