"""The command line: ``argus-sim``.

stdout is the result, stderr the progress and what is wrong. What is wrong with an input is one message and exit
code 2; a traceback is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from argus_sim import __version__
from argus_sim.cli import check, compare, inspect, live, load, output, profiles, run, size, traces, validate_live
from argus_sim.errors import InputError

__all__ = ["app", "main"]

app = typer.Typer(
    name="argus-sim",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog=output.examples(
        "argus-sim run experiments/fig7.yaml", "argus-sim policies", "argus-sim traces show bursty"
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        output.say(f"argus-sim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Find out, before buying a single GPU, how a text-to-image service will behave."""


for part in (run.app, size.app, inspect.app, check.app, compare.app, live.app, load.app, validate_live.app):
    app.add_typer(part)
app.add_typer(profiles.app, name="profiles")
app.add_typer(traces.app, name="traces")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; without arguments those of the process."""
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="argus-sim", standalone_mode=False)
    except typer.TyperException as error:
        return _wrong_usage(error)
    except (InputError, OSError) as error:
        output.remark(f"error: {error}")
        return 2
    return code if isinstance(code, int) else 0


def _wrong_usage(error: typer.TyperException) -> int:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if not message:  # no command was given: typer has printed the help
        return 2
    hint = f" (see '{context.command_path} --help')" if context is not None else ""
    output.remark(f"error: {message.rstrip('.')}{hint}")
    return 2
