"""Running what documentation tells its readers to type: every block of a page, in order, in one folder.

``sh`` blocks are commands; ``yaml``, ``csv`` and ``python`` blocks are written to the file that the text before
them names (```` `mine.yaml`: ````). A comment before a block says otherwise:
``<!-- run: no, WHY -->`` leaves it out, ``<!-- run: python -->`` executes it, ``<!-- run: printed -->`` is of
what the commands before it print. Heavy commands are run in small.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from argus_sim.cli import main
from calibration.cli import main as calibrate
from tests.patience import LONG_S

#: What is added to ``argus-sim run`` of a shipped experiment: ten minutes of a trace, one seed.
SMALL = ["--set", "traces=[{name: bursty, file: bursty, clip_s: [9000, 9600]}]", "--set", "bound=false"]
#: And where the reader is to run all policies:
FEW = ["--set", "policies=[clipper-ha, argus]"]
#: Where pages say that a server is.
SERVER = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Block:
    """One block of code: its language, what it says, and what the reader is to do with it."""

    language: str
    text: str
    file: str | None
    run: str


def blocks(page: str) -> Iterator[Block]:
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        before = page[: found.start()].rstrip()
        mark = re.search(r"<!-- run: (.*?) -->$", before)
        named = re.search(r"`([\w.-]+\.(?:yaml|csv|py))`:$", before)
        yield Block(found[1], found[2], named[1] if named else None, mark[1] if mark else "yes")


def commands(text: str) -> list[list[str]]:
    """The commands of a block, without comments; a line that ends with a backslash goes on in the next."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


#: How a line begins that a reader would type.
_TYPED = re.compile(r"(?:\w+=\S+ )*(?:argus-sim|argus-calibrate|make|pip|python3?|jupyter|curl|source|\.) ")


def typed_elsewhere(page: str) -> list[str]:
    """Commands where they would not be run: indented, or in a block of something else."""
    found = [line for b in blocks(page) if b.language not in ("sh", "python") for line in b.text.splitlines()]
    found += re.findall(r"^    (\S.*)$", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), re.M)
    return [line for line in found if _TYPED.match(line)]


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``argus-sim ...`` or ``argus-calibrate ...``; anything else is not ours to run.

    In this process, but for servers: ``argus-sim serve`` is started, has to answer, and is stopped; where a
    command is for :data:`SERVER`, one is there while it runs.
    """
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        if name == "PYTHONPATH":
            monkeypatch.syspath_prepend(str(Path(value).resolve()))
        else:
            monkeypatch.setenv(name, value)
    program, *arguments = words
    if program == "argus-calibrate":
        assert calibrate(arguments) == 0, shlex.join(words)
        return
    assert program == "argus-sim", f"{shlex.join(words)}: mark the block <!-- run: no, WHY -->"
    if arguments[0] == "serve":
        with serving(arguments):
            return
    if SERVER in arguments:
        monkeypatch.setattr("argus_sim.live.look._TIMEOUT_S", LONG_S)
        arguments += {"watch": ["--once"], "load": ["--requests", "20", "--speed", "60"]}[arguments[0]]
        with serving(["serve", "fig7", "--policy", "argus", "--speed", "60"]) as url:
            assert main([url if word == SERVER else word for word in arguments]) == 0, shlex.join(words)
        return
    if arguments[0] in ("run", "size"):
        arguments += ["--jobs", "1", "--quiet"]
        if arguments[1] in ("fig7", "experiments/fig7.yaml"):
            has_policies = any(word.startswith("policies=") for word in arguments)
            arguments[1] = "fig7"
            arguments += SMALL + ([] if has_policies else FEW) + ["--seeds", "1"]
    assert main(arguments) == 0, shlex.join(words)


@contextmanager
def serving(arguments: list[str]) -> Iterator[str]:
    """A server that runs as its command says, on a port that is free; gives its address."""
    pytest.importorskip("fastapi", reason="needs the live extra: fastapi")
    program = "import sys; from argus_sim.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *arguments, "--port", "0"]
    with tempfile.TemporaryFile("w+") as said:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().rsplit(" ", 1)[-1].strip()
            said.seek(0)
            assert url.startswith("http"), f"{shlex.join(arguments)}: {said.read()}"
            with urllib.request.urlopen(f"{url}/healthz") as answer:
                assert answer.status == 200
            yield url
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=LONG_S) == 0, shlex.join(arguments)
        finally:
            server.kill()
            server.communicate()


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Do what a page says; returns how many commands and programs that were."""
    monkeypatch.chdir(folder)
    done = 0
    for block in blocks(page):
        if block.run.startswith("no"):
            assert block.run.removeprefix("no").strip(" ,"), "say why the block is not run"
        elif block.run.startswith("python"):
            exec(compile(block.text, "a page", "exec"), {})
            done += 1
        elif block.language == "sh":
            for words in commands(block.text):
                run_command(words, monkeypatch)
                done += 1
        elif block.file is not None:
            (folder / block.file).write_text(block.text)
    return done
