"""Running what documentation tells its readers to type: every block of a page, in order, in one folder.

``sh`` blocks are commands; ``yaml``, ``csv`` and ``python`` blocks are written to the file that the text before
them names (```` `mine.yaml`: ````). A comment before a block says otherwise:
``<!-- run: no, WHY -->`` leaves it out, ``<!-- run: python -->`` executes it. Heavy commands are run in small.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from argus_sim.cli import main

#: What is added to ``argus-sim run`` of a shipped experiment: ten minutes of a trace, one seed.
SMALL = ["--set", "traces=[{name: bursty, file: bursty, clip_s: [9000, 9600]}]", "--set", "bound=false"]
#: And where the reader is to run all policies:
FEW = ["--set", "policies=[clipper-ha, argus]"]


@dataclass(frozen=True)
class Block:
    """One block of code: its language, what it says, and what the reader is to do with it."""

    language: str
    text: str
    file: str | None
    run: str


def blocks(page: str) -> Iterator[Block]:
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        before = page[: found.start()].rstrip()
        mark = re.search(r"<!-- run: (.*?) -->$", before)
        named = re.search(r"`([\w.-]+\.(?:yaml|csv|py))`:$", before)
        yield Block(found[1], found[2], named[1] if named else None, mark[1] if mark else "yes")


def commands(text: str) -> list[list[str]]:
    """The commands of a block, without comments; a line that ends with a backslash goes on in the next."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``argus-sim ...`` in this process; anything else is not ours to run."""
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        if name == "PYTHONPATH":
            monkeypatch.syspath_prepend(str(Path(value).resolve()))
        else:
            monkeypatch.setenv(name, value)
    assert words[0] == "argus-sim", f"{shlex.join(words)}: mark the block <!-- run: no, WHY -->"
    arguments = words[1:]
    if arguments[0] == "run":
        arguments += ["--jobs", "1", "--quiet"]
        if arguments[1] in ("fig7", "experiments/fig7.yaml"):
            has_policies = any(word.startswith("policies=") for word in arguments)
            arguments[1] = "fig7"
            arguments += SMALL + ([] if has_policies else FEW) + ["--seeds", "1"]
    assert main(arguments) == 0, shlex.join(words)


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Do what a page says; returns how many commands and programs that were."""
    monkeypatch.chdir(folder)
    done = 0
    for block in blocks(page):
        if block.run.startswith("no"):
            assert block.run.removeprefix("no").strip(" ,"), "say why the block is not run"
        elif block.run == "python":
            exec(compile(block.text, "a page", "exec"), {})
            done += 1
        elif block.language == "sh":
            for words in commands(block.text):
                run_command(words, monkeypatch)
                done += 1
        elif block.file is not None:
            (folder / block.file).write_text(block.text)
    return done
