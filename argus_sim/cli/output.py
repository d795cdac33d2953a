"""What all commands share: options, printing, and the names that a shell can complete.

Nothing heavy is imported here or at the top of a command's module: ``argus-sim --help`` and completion are to
answer at once.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argus_sim.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks on stderr.")]
Experiment = Annotated[
    str,
    typer.Argument(
        metavar="EXP",
        help="An experiment's YAML file, the name of a shipped one, or a run's experiment.lock.yaml.",
        autocompletion=lambda incomplete: complete_experiments(incomplete),
    ),
]
Seeds = Annotated[int | None, typer.Option(min=1, help="How many seeds, whatever the file says.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Processes; by default one per core.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a field, e.g. cluster.workers=16; repeatable."),
]
Options = Annotated[
    list[str], typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the format; repeatable.")
]


def examples(*commands: str) -> str:
    """The end of a command's help."""
    return "\n".join(["Example" + "s" * (len(commands) > 1) + ":", *(f"- {command}" for command in commands)])


def say(text: str = "") -> None:
    """A line of the result, unbroken."""
    typer.echo(text)


def show(*parts: RenderableType) -> None:
    """Tables of the result."""
    from rich.console import Console

    # Where nobody watches, a table is as wide as it needs to be: a pipe has no edge to wrap at.
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    for part in parts:
        console.print(part)


def remark(text: str, *, quiet: bool = False) -> None:
    """A line beside the result, on stderr."""
    if not quiet:
        typer.echo(text, err=True)


def show_json(value: Any) -> None:
    """The result as JSON; what is undefined is null, since JSON has no NaN."""
    typer.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def grid(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Table:
    """A plain table: the first ``left`` columns are text, the others numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, heading in enumerate(headings):
        text = index < left
        table.add_column(heading, justify="left" if text else "right", no_wrap=text)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def duration(seconds: float) -> str:
    """A length of time in the unit that suits it.

    >>> duration(45), duration(600), duration(86400)
    ('45 s', '10 min', '24 h')
    """
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def key_values(options: Sequence[str], flag: str = "--option") -> dict[str, str]:
    """Flags of the form KEY=VALUE as a mapping.

    >>> key_values(["scale=0.5"])
    {'scale': '0.5'}
    """
    pairs: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not (key and equals):
            raise InputError("must look like key=value", where=f"{flag} {option}")
        if key in pairs:
            raise InputError(f"is given twice; it was {pairs[key]!r} before", where=f"{flag} {option}")
        pairs[key] = value
    return pairs


def ending() -> dict[signal.Signals, Any]:
    """The signals that end a process, beside Ctrl-C's, with their handlers; none that is ignored, as by nohup."""
    known = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in known}
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Treats ``kill`` and the end of the terminal like Ctrl-C, so that no process is left behind."""
    before = ending()
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shipped_experiments() -> dict[str, Path]:
    """Name -> file of the experiments that come with argus-sim."""
    package = Path(__file__).parent.parent
    inside = package / "_shipped" / "experiments"  # in a wheel; a checkout has it beside the package
    folder = inside if inside.is_dir() else package.parent / "experiments"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def complete_experiments(incomplete: str) -> list[str]:
    return [name for name in shipped_experiments() if name.startswith(incomplete)]


def complete_policies(incomplete: str) -> list[str]:
    return sorted(n for n in entry_points(group="argus_sim.policies").names if n.startswith(incomplete))


def complete_profiles(incomplete: str) -> list[str]:
    from argus_sim.profile import shipped_profiles

    return [name for name in shipped_profiles() if name.startswith(incomplete)]


def complete_traces(incomplete: str) -> list[str]:
    from argus_sim.trace import shipped_models, shipped_traces

    return [name for name in (*shipped_traces(), *shipped_models()) if name.startswith(incomplete)]


def complete_anything(incomplete: str) -> list[str]:
    """Whatever ``validate`` knows by name."""
    return complete_profiles(incomplete) + complete_traces(incomplete) + complete_experiments(incomplete)


def complete_trace_formats(incomplete: str) -> list[str]:
    from argus_sim.importers import FORMATS

    return [name for name in FORMATS if name.startswith(incomplete)]


def complete_profile_formats(incomplete: str) -> list[str]:
    from argus_sim.profile.importing import IMPORTERS

    return [name for name in IMPORTERS if name.startswith(incomplete)]
