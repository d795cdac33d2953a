"""``argus-calibrate``: measure, build, compare and check profiles. stdout is the result, stderr everything else.

Nothing heavy is imported at the top: ``--help`` is to answer at once, and what needs torch says so when it is
missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from argus_sim.cli import output
from argus_sim.errors import InputError
from calibration import cli_profiles
from calibration.cli_profiles import EMBEDDINGS
from calibration.given import refuse_ignored

if TYPE_CHECKING:
    from calibration.wishes import Wishes

app = typer.Typer(
    name="argus-calibrate",
    add_completion=False,
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog=output.examples(
        "argus-calibrate --gpu 0",
        "argus-calibrate --device cpu --zoo shapes --prompts 40 --out my/shapes-cpu",
        "argus-calibrate --gpu 0 --zoo sd --random-weights --budget 30m",
        "argus-calibrate report shapes-cpu --out report.html",
    ),
)


def _items(text: str | None) -> tuple[str, ...]:
    return tuple(item.strip() for item in (text or "").split(",") if item.strip())


def _numbers(text: str | None, where: str) -> tuple[int, ...]:
    items = _items(text)
    if not all(item.isdecimal() for item in items):
        raise InputError(f"whole numbers, separated by commas, not {text!r}", where=where)
    return tuple(int(item) for item in items)


@app.callback()
def measure(
    context: typer.Context,
    gpu: Annotated[int | None, typer.Option(help="Number of the GPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N, or meta: compare sizes only.")] = None,
    zoo: Annotated[
        str | None, typer.Option(help="sd, the default: public models; shapes: small ones that come with this.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="NAME or NAME=FOLDER, comma-separated; first is base.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder with one folder of weights per model.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Exact architectures, no download; latency only.")
    ] = False,
    approximations: Annotated[
        str | None,
        typer.Option(help="ac-K, steps-N, deepcache-N, tome-%, int8, fp8, compile; sums with +; or none."),
    ] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="1,2,4,8 on a GPU by default, else 1,2,4.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, but for few-step models.")] = None,
    prompts: Annotated[str | None, typer.Option(help="How many to write, or a file; by default 200.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Images per prompt and variant; 2 by default.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of a CPU; all by default.", min=1)] = None,
    dtype: Annotated[str | None, typer.Option(help="half (each model's own), fp16, bf16 or fp32.")] = None,
    scorers: Annotated[
        str | None, typer.Option(help="clip, pickscore, imagereward, hpsv2, or NAME=FOLDER; comma-separated.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="The score that ratios are formed from.")] = None,
    embedding: Annotated[str | None, typer.Option(help=f"Of prompts: {EMBEDDINGS} By default ngrams.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the profile; by default calibrated/ZOO-DEVICE.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; other options are as they were.")
    ] = False,
    latency_only: Annotated[bool, typer.Option("--latency-only", help="No images are rated.")] = False,
    quality_only: Annotated[bool, typer.Option("--quality-only", help="No precise latency.")] = False,
    budget: Annotated[str | None, typer.Option(help="Stop after this long: 90s, 30m, 1h30m.")] = None,
    cell_seconds: Annotated[
        float | None,
        typer.Option(help="Time for one latency; 15 on a GPU, where long runs get more, else 3.", min=0.0),
    ] = None,
    idle_seconds: Annotated[
        float | None,
        typer.Option(help="Also time images after a pause of this; 0.2 by default, 0: do not.", min=0.0),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="Time latencies in so many turns, a share of the time each; 1 by default.", min=1),
    ] = None,
    sheets: Annotated[int, typer.Option(help="Contact sheets for this many prompts.", min=0)] = 0,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Print the plan and stop.")] = False,
    quiet: output.Quiet = False,
) -> None:
    """Measure latency and quality of models and their approximations, and write a profile.

    Without a command: load what weights there are, time every variant, rate its images, and write the folder.
    A run that was stopped goes on with --resume.
    """
    refuse_ignored(context)
    if context.invoked_subcommand is not None:
        return
    from calibration.wishes import Wishes, seconds_of

    wishes = Wishes(
        zoo=zoo,
        models=_items(models),
        weights=weights,
        gpu=gpu,
        device=device,
        threads=threads,
        dtype=dtype,
        prompts=prompts,
        approximations=_items(approximations),
        batch_sizes=_numbers(batch_sizes, "--batch-sizes"),
        steps=steps,
        seeds=seeds,
        scorers=_items(scorers),
        metric=metric,
        embedding=embedding,
        out=out,
        resume=resume,
        latency_only=latency_only,
        quality_only=quality_only,
        random_weights=random_weights,
        budget_s=None if budget is None else seconds_of(budget),
        cell_seconds=cell_seconds,
        idle_seconds=idle_seconds,
        rounds=rounds,
        sheets=sheets,
    )
    if device == "meta":
        _compare_sizes(wishes)
        return
    _measure(wishes, plan_only=plan_only, quiet=quiet)


def _compare_sizes(wishes: Wishes) -> None:
    from calibration.measure import compare_sizes
    from calibration.pipelines import need_torch
    from calibration.wishes import DEFAULT_ZOO
    from calibration.zoo import select

    need_torch()
    rows, agree = compare_sizes(select(wishes.zoo or DEFAULT_ZOO, wishes.models))
    headings = ("model", "component", "parameters", "published", "")
    verdicts = {True: "agrees", False: "differs", None: ""}
    cells = [(model, part, f"{counted:,}", text, verdicts[ok]) for model, part, counted, text, ok in rows]
    output.show(output.grid(headings, cells, left=2))
    if not agree:
        raise typer.Exit(1)


def _measure(wishes: Wishes, *, plan_only: bool, quiet: bool) -> None:
    from calibration.measure import carry_out, plan_text, prepare
    from calibration.progress import Bar, Silent
    from calibration.store import Store

    def remark(text: str) -> None:
        output.remark(text, quiet=quiet)

    prepared = prepare(wishes, remark)
    lines, _ = plan_text(prepared, wishes.budget_s)
    for line in lines:
        (output.say if plan_only else remark)(line)
    if plan_only:
        return
    store = Store(prepared.out)
    cells = len(prepared.plan.cells)
    try:
        if quiet:
            outcome = carry_out(prepared, wishes, Silent())
        else:
            with Bar(prepared.plan, store.done() - store.failed(), remark) as bar:
                outcome = carry_out(prepared, wishes, bar)
    except KeyboardInterrupt:
        output.remark(f"stopped: {len(store.done())} of {cells} cells are kept; go on with --resume")
        raise typer.Exit(130) from None
    for line in outcome.assembled.left_out:
        remark(f"left out: {line}")
    for line in outcome.assembled.notes:
        remark(f"note: {line}")
    if not outcome.finished:
        output.remark(f"the budget is spent: {len(store.done())} of {cells} cells are done; go on with --resume")
    for sheet in outcome.sheets:
        remark(f"contact sheet: {sheet}")
    if outcome.remark:
        remark(f"note: {outcome.remark}")
    profile = outcome.assembled.profile
    output.say(
        f"{prepared.out}  {len(profile.variants)} variants, {len(profile.prompts)} prompts  {profile.digest()}"
    )


app.add_typer(cli_profiles.app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: a wrong input is one message on stderr and code 2."""
    for package in ("diffusers", "transformers", "torch", "torchmetrics", "DeepCache", "tomesd"):
        # What others do against their own dependencies' advice is of no use to whoever calibrates.
        warnings.filterwarnings("ignore", module=rf"{package}(\..*)?$")
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="argus-calibrate", standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message()
        if message:  # without one, typer has printed the help
            output.remark(f"error: {message.rstrip('.')} (see 'argus-calibrate --help')")
        return 2
    except (InputError, OSError) as error:
        output.remark(f"error: {error}")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        output.remark("stopped")
        return 130
    return code if isinstance(code, int) else 0
