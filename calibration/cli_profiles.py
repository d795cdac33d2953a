"""The commands of ``argus-calibrate`` about profiles that are there, and about texts: all but measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from argus_sim.cli import output

app = typer.Typer()

#: What ``--embedding`` takes.
EMBEDDINGS: Final = "ngrams, minilm, minilm=FOLDER, clip=FOLDER; clip is the shapes zoo's."


@app.command()
def published(
    out: Annotated[Path, typer.Option(help="Folder to write the profiles into, one subfolder each.")],
) -> None:
    """Rebuild the profiles that are made of published numbers."""
    from argus_sim.profile import Profile
    from calibration.published import write_published

    for folder in write_published(out):
        output.say(f"{folder}  {Profile.load(folder).digest()}")


@app.command()
def validate(
    profile: Annotated[str, typer.Argument(help="Name of a shipped profile, or a profile's folder.")],
) -> None:
    """Check a profile; say what each table is and what is odd about it."""
    from argus_sim.profile import Profile

    checked = Profile.load(profile)
    remarks = checked.validate()
    output.say(f"{checked.name}: sound; {len(checked.variants)} variants, {len(checked.prompts)} prompts")
    for table, kind in checked.measured_summary().items():
        output.say(f"  {table:<10}  {kind}")
    for text in remarks:
        output.say(f"  note: {text}")


Shipped = Annotated[
    str, typer.Argument(metavar="PROFILE", help="Name of a shipped profile, or a profile's folder.")
]
Tolerance = Annotated[float, typer.Option(help="Relative quality that may be lost.", min=0.0, max=0.99)]


@app.command(epilog=output.examples("argus-calibrate report shapes-cpu --out report.html --figures my/figures"))
def report(
    profile: Shipped,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("profile-report.html"),
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures as PNG and SVG.")] = None,
    tolerance: Tolerance = 0.05,
) -> None:
    """Show a profile: latency by batch, quality by latency, affinity, prompts by level, caching by similarity."""
    from argus_sim.profile import Profile
    from calibration.figures import save_figures
    from calibration.report import findings, write_html

    loaded = Profile.load(profile)
    write_html(out, loaded, tolerance)
    output.remark(f"wrote {out}")
    if figures is not None:
        for file in save_figures(figures, loaded, tolerance):
            output.remark(f"wrote {file}")
    for line in findings(loaded, tolerance):
        output.say(line)


@app.command(epilog=output.examples("argus-calibrate merge my/latency my/quality --out my/whole"))
def merge(
    profiles: Annotated[
        list[str], typer.Argument(metavar="PROFILE...", help="Two or more; the first has priority.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new profile.")],
) -> None:
    """Join profiles of one device: models, batch sizes or metrics that were measured in separate runs."""
    from argus_sim.profile import Profile
    from calibration.compare import merge as join

    joined = join([Profile.load(name) for name in profiles], out.name)
    joined.save(out)
    output.say(f"{out}  {len(joined.variants)} variants, {len(joined.prompts)} prompts  {joined.digest()}")


@app.command(epilog=output.examples("argus-calibrate diff artefact-a100 my/a100"))
def diff(a: Shipped, b: Shipped, as_json: output.Json = False) -> None:
    """Say how profile B differs from A: device, variants, latency, quality, loads."""
    from argus_sim.profile import Profile
    from calibration.compare import diff as difference

    found = difference(Profile.load(a), Profile.load(b))
    if as_json:
        output.show_json(found)
        return
    if found["equal"]:
        output.say("the same content")
        return
    for what, (x, y) in found["facts"].items():
        output.say(f"{what}: {x} | {y}")
    for side, key in (("A", "only_a"), ("B", "only_b")):
        if found[key]:
            output.say(f"only in {side}: {', '.join(found[key])}")
    rows = [
        (
            row["variant"], str(row["batch_size"]), f"{row['a_s']:.4g}", f"{row['b_s']:.4g}",
            f"{row['latency_ratio']:.3f}", f"{row['relative_quality_change']:+.4f}",
        )
        for row in found["latency"]
    ]  # fmt: skip
    if rows:
        headings = ("variant", "batch", "A median s", "B median s", "B / A", "rel. quality B - A")
        output.show(output.grid(headings, rows))
    for model, ratio in found["disk_load_ratio"].items():
        output.say(f"load of {model} from disk: B takes {ratio:.3f} times as long")


@app.command(epilog=output.examples("argus-calibrate fit shapes-cpu --out my/fit"))
def fit(
    profile: Shipped,
    out: Annotated[Path | None, typer.Option(help="Folder for predictor.npz, fit.json and the diagram.")] = None,
    embedding: Annotated[str, typer.Option(help=f"Of prompts: {EMBEDDINGS}")] = "ngrams",
    tolerance: Tolerance = 0.05,
    as_json: output.Json = False,
) -> None:
    """Train the affinity predictor on a profile and say how good it is on prompts it has not seen."""
    from argus_sim.profile import Profile
    from calibration.fit import as_json as plain
    from calibration.fit import fit as train
    from calibration.fit import write_fit

    loaded = Profile.load(profile)
    result = train(loaded, embedding=embedding, tolerance=tolerance)
    if out is not None:
        for file in write_fit(result, out, loaded.name):
            output.remark(f"wrote {file}")
    if as_json:
        output.show_json(plain(result))
        return
    headings = (
        "ladder",
        "exact",
        "within 1",
        "one level for all",
        "too far",
        "regret",
        "for all",
        "R2",
        "speed-up",
        "perfect",
    )
    rows = [
        (
            j.strategy, f"{j.accuracy:.2f}", f"{j.within_one:.2f}", f"{j.baseline_accuracy:.2f}",
            f"{j.too_far:.2f}",
            f"{j.regret:.4f}", f"{j.baseline_regret:.4f}", f"{j.explained:.2f}", f"{j.speed_up:.2f}",
            f"{j.perfect_speed_up:.2f}",
        )
        for j in result.judgements
    ]  # fmt: skip
    output.show(output.grid(headings, rows))
    errors = ", ".join(f"{j.strategy} {j.calibration_error:.3f}" for j in result.judgements)
    output.say(f"on {result.judgements[0].prompts} test prompts; calibration error: {errors}")


@app.command(epilog=output.examples("argus-calibrate embed artefact-a100 --out my/prompts.parquet"))
def embed(
    texts: Annotated[list[str], typer.Argument(help="Profiles, .txt files (a text per line) or .csv files.")],
    out: Annotated[Path, typer.Option(help="The Parquet file.")],
    column: Annotated[
        list[str] | None, typer.Option(help="Columns of the .csv files that hold texts; prompt by default.")
    ] = None,
    embedding: Annotated[str, typer.Option(help="minilm or minilm=FOLDER.")] = "minilm",
) -> None:
    """Make the sentence embeddings that a simulated cache reads: cluster.cache.embeddings of an experiment."""
    from calibration.embed import make, texts_of

    made = make(texts_of(texts, column or ()), embedding)
    made.save(out)
    output.say(f"{out}  {len(made.texts)} texts, {made.vectors.shape[1]} dimensions")


@app.command("cache-log", epilog=output.examples("argus-calibrate cache-log log.csv --embedding my/log.parquet"))
def cache_log(
    log: Annotated[Path, typer.Argument(help="CSV with the columns Scores, Queries, Caches.")],
    embedding: Annotated[str, typer.Option(help="hashed, or a file that embed made of the log.")] = "hashed",
    fit_rows: Annotated[int, typer.Option(help="Fit to this many rows from the start.", min=100)] = 10_000,
    scale: Annotated[
        Path | None, typer.Option(help="Write the scale to this JSON file; no experiment reads it.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Replays, each with quantiles of its own.", min=1)] = 3,
    as_json: output.Json = False,
) -> None:
    """Fit a scale of similarity to one part of a cache's log, and replay the log in a simulated cache."""
    from argus_sim.files import write_atomically
    from calibration.cache_log import CacheLog, vectors_of
    from calibration.cache_report import lines, study

    read = CacheLog.read(log)
    name, vectors = vectors_of(read, embedding)
    found = study(read, vectors, name, fit_rows=fit_rows, seeds=seeds)
    if scale is not None:
        write_atomically(scale, (found.scale.model_dump_json() + "\n").encode())
        output.remark(f"wrote {scale}")
    if as_json:
        output.show_json(found.plain())
        return
    for line in lines(found):
        output.say(line)
