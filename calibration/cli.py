"""``argus-calibrate``: build and check profiles. stdout is the result, stderr the trouble."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from argus_sim.errors import InputError
from argus_sim.profile import Profile

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Build and check the profiles that argus-sim runs on.",
)


@app.callback()
def _commands() -> None:
    """Keep subcommands as such even when there is but one."""


@app.command()
def published(
    out: Annotated[Path, typer.Option(help="Folder to write the profiles into, one subfolder each.")],
) -> None:
    """Rebuild the profiles that are made of published numbers."""
    from calibration.published import write_published

    for folder in write_published(out):
        typer.echo(f"{folder}  {Profile.load(folder).digest()}")


@app.command()
def validate(
    profile: Annotated[str, typer.Argument(help="Name of a shipped profile, or a profile's folder.")],
) -> None:
    """Check a profile; say what each table is and what is odd about it."""
    checked = Profile.load(profile)
    remarks = checked.validate()
    typer.echo(f"{checked.name}: sound; {len(checked.variants)} variants, {len(checked.prompts)} prompts")
    for table, kind in checked.measured_summary().items():
        typer.echo(f"  {table:<10}  {kind}")
    for remark in remarks:
        typer.echo(f"  note: {remark}")


def main() -> None:
    """Run the command line: what is wrong with the input is one message on stderr and exit code 2."""
    try:
        app()
    except (InputError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
