"""Public data sets with one row per request: arrivals as they were recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from argus_sim.errors import InputError
from argus_sim.importers.base import (
    NO_STAMP,
    Batch,
    Clock,
    Format,
    Kinds,
    Recording,
    Rows,
    files_in,
    parquet_batches,
    seconds_or_stamps,
    times_of,
)
from argus_sim.textfile import lines_in


class GenTD26Requests(Format):
    """One row per request of a production Stable Diffusion service, to the second, over 23 days.

    Reads ``lora_request_trace.csv`` as published (column ``gmt_create``), or with ``t_s``, seconds, instead.
    """

    name = "gentd26-requests"
    description = "Alibaba GenTD26: requests of a text-to-image service (23 days, 1-s stamps)"
    source = "GenTD26, Lin et al., SoCC 2025, github.com/alibaba/clusterdata cluster-trace-v2026-GenAI"
    licence = "research or study purposes; cite the paper"

    predict_type: Literal["TXT_2_IMG", "IMG_2_IMG", "INPAINTING", "all"] = Field(
        "TXT_2_IMG", description="Keep only requests of this type."
    )

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        column, unit = seconds_or_stamps(path, "t_s", "gmt_create")

        def batches() -> Iterator[Batch]:
            rows, clock = (
                Rows(path, {column: "number" if unit == "s" else "text", "predict_type": "text"}),
                Clock(),
            )
            for batch in rows:
                times = times_of(rows, batch, column, unit, clock)
                keep = np.full(len(times), True)
                if self.predict_type != "all":
                    keep = np.array(batch["predict_type"]) == self.predict_type
                # The service was watched from the first to the last request, whatever their type.
                yield Batch(times[keep], since_s=float(times.min()), until_s=float(times.max()))

        origin = self._recorded(path, derived=f"requests of predict_type {self.predict_type}")
        return Recording(batches(), (origin,), from_first=unit == "timestamp")


class AzureLLM2023(Format):
    """One row per request of a language-model service over an hour: real bursts, though not of images.

    Reads ``AzureLLMInferenceTrace_code.csv`` or ``_conv.csv`` as published (column ``TIMESTAMP``), or with
    ``t_s``, seconds, instead.
    """

    name = "azure-llm-2023"
    description = "Azure LLM inference 2023: requests of a language-model service (1 h, code or conversation)"
    source = "Azure LLM inference trace 2023, Patel et al., ISCA 2024, github.com/Azure/AzurePublicDataset"
    licence = "CC-BY-4.0"

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        column, unit = seconds_or_stamps(path, "t_s", "TIMESTAMP")

        def batches() -> Iterator[Batch]:
            rows, clock = Rows(path, {column: "number" if unit == "s" else "text"}), Clock()
            for batch in rows:
                yield Batch(times_of(rows, batch, column, unit, clock))

        return Recording(batches(), (self._recorded(path),), from_first=unit == "timestamp")


class AzureLLM2024(AzureLLM2023):
    """The same service over a week in May 2024: ``AzureLLMInferenceTrace_code_1week.csv``, ``_conv_1week``."""

    name = "azure-llm-2024"
    description = "Azure LLM inference 2024: requests of a language-model service (1 week, code or conversation)"
    source = (
        "Azure LLM inference trace 2024, Stojkovic et al., HPCA 2025 (arXiv 2408.00741), "
        "github.com/Azure/AzurePublicDataset"
    )


class AzureFunctions2021(Format):
    """One row per invocation of a serverless platform over two weeks, written when it ends.

    Reads ``AzureFunctionsInvocationTraceForTwoWeeksJan2021.txt`` as published (columns ``app``, ``func``,
    ``end_timestamp``, ``duration``, both s). An invocation arrives at its end minus its duration, as if it never
    waited. Times count from the first arrival.
    """

    name = "azure-functions-2021"
    description = "Azure Functions 2021: invocations of a serverless platform (2 weeks)"
    source = "Azure Functions Invocation Trace 2021, Zhang et al., SOSP 2021, github.com/Azure/AzurePublicDataset"
    licence = "CC-BY-4.0"

    app: str | None = Field(None, description="Keep only invocations of this application.")

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        def batches() -> Iterator[Batch]:
            rows = Rows(path, {"end_timestamp": "number", "duration": "number", "app": "text"})
            for batch in rows:
                end_s, duration_s = rows.amounts(batch, "end_timestamp"), rows.amounts(batch, "duration")
                keep = np.full(len(end_s), True) if self.app is None else np.array(batch["app"]) == self.app
                yield Batch((end_s - duration_s)[keep])

        of = "" if self.app is None else f" of app {self.app}"
        origin = self._recorded(path, derived=f"invocations{of}: end_timestamp - duration")
        return Recording(batches(), (origin,), from_first=True)


class BurstGPT(Format):
    """One row per request to ChatGPT and GPT-4 through a campus service over 121 days, to the second.

    Reads ``BurstGPT_*.csv`` as published (columns ``Timestamp`` in s, ``Model``, ``Log Type``). Times count from
    the first request of any kind.
    """

    name = "burstgpt"
    description = "BurstGPT: requests to ChatGPT and GPT-4 (121 days, 1-s stamps)"
    source = "BurstGPT, Wang et al., KDD 2025 (arXiv 2401.17644), github.com/HPMLL/BurstGPT"
    licence = "CC-BY-4.0"

    model: Literal["ChatGPT", "GPT-4", "all"] = Field("all", description="Keep only requests to this model.")
    log_type: Literal["Conversation log", "API log", "all"] = Field(
        "all", description="Keep only requests that came this way."
    )

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        def batches() -> Iterator[Batch]:
            rows = Rows(path, {"Timestamp": "number", "Model": "text", "Log Type": "text"})
            for batch in rows:
                times = rows.amounts(batch, "Timestamp")
                keep = np.full(len(times), True)
                for column, wanted in (("Model", self.model), ("Log Type", self.log_type)):
                    if wanted != "all":
                        keep &= np.array(batch[column]) == wanted
                yield Batch(times[keep], since_s=float(times.min()), until_s=float(times.max()))

        origin = self._recorded(path, derived=f"Model {self.model}, Log Type {self.log_type}")
        return Recording(batches(), (origin,), from_first=True)


class Mooncake(Format):
    """One JSON object per request of a chat service: ``timestamp`` in ms and fields that do not matter here.

    Reads ``conversation_trace.jsonl``, ``toolagent_trace.jsonl`` and their like as published.
    """

    name = "mooncake"
    description = "Mooncake: requests of a chat service (1 h, JSON lines)"
    source = "Mooncake, Qin et al., FAST 2025 (arXiv 2407.00079), github.com/kvcache-ai/Mooncake"
    licence = "Apache-2.0"

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        def batches() -> Iterator[Batch]:
            times: list[float] = []
            for number, line in _lines(path):
                if line.strip():
                    times.append(_timestamp_ms(line, f"{path}: line {number}") / 1000.0)
                if len(times) == 10_000:
                    yield Batch(np.array(times))
                    times = []
            if times:
                yield Batch(np.array(times))

        return Recording(batches(), (self._recorded(path),))


def _timestamp_ms(line: str, where: str) -> float:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}", where=where) from None
    found = row.get("timestamp") if isinstance(row, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < float("inf"):
        raise InputError(f"timestamp must be a finite number >= 0, found {found!r}", where=where)
    return float(found)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file and their numbers."""
    number = 0
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line
        except UnicodeDecodeError as error:
            raise InputError(f"is not UTF-8 after line {number}: {error.reason}", where=str(path)) from None


def _is_headless(path: Path) -> bool:
    first = next((line for _, line in _lines(path)), "").split(",")[0].strip()
    return first.replace(".", "", 1).isdecimal()


class DiffServe(Format):
    """One line per request, ``ms,content_id``: hourly counts of Azure Functions replayed as seconds.

    Reads ``trace_*qps.txt`` as published (no header), or with the header ``t_ms,prompt_id``.
    """

    name = "diffserve"
    description = "DiffServe: requests with prompt numbers (6 min, drawn by its authors on a real shape)"
    source = "DiffServe, Ahmad et al., MLSys 2025, github.com/qizhengyang98/DiffServe traces/maf"
    licence = "none stated; Azure Functions counts CC-BY-4.0"

    prompts: Path | None = Field(
        None, description="File of prompts, one a line: line i, from 1, is the content_id i."
    )

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        names = ("t_ms", "prompt_id")
        texts = None if self.prompts is None else _prompts(self.prompts)

        def batches() -> Iterator[Batch]:
            kinds: Kinds = {"t_ms": "number", "prompt_id": "number"}
            rows = Rows(path, kinds, names=names if _is_headless(path) else ())
            for batch in rows:
                times, chosen = rows.amounts(batch, "t_ms") / 1000.0, rows.counts(batch, "prompt_id")
                if texts is None:
                    yield Batch(times)
                    continue
                beyond = (chosen < 1) | (chosen > len(texts))
                rows.check("prompt_id", beyond, chosen.astype(np.float64), f"is none of 1 to {len(texts)}")
                yield Batch(times, [texts[i - 1] for i in chosen.tolist()])

        parts = [
            self._recorded(path, covers="rate curve", derived="hourly counts as rates per second, rescaled"),
            self._recorded(path, covers="arrival times", derived="drawn by its authors").model_copy(
                update={"kind": "synthetic"}
            ),
        ]
        return Recording(batches(), tuple(parts))


def _prompts(path: Path) -> list[str]:
    try:
        return lines_in(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=f"option prompts: {path}") from None


class Proteus(Format):
    """One line per request, ``ms,accuracy,deadline_ms``: a month of tweets compressed into minutes.

    Reads one ``<family>.txt`` as published (no header), or a folder with those of several model families, which
    are superposed.
    """

    name = "proteus"
    description = "Proteus: requests drawn on a month of tweets, a file or a folder of model families"
    source = "Proteus, Ahmad et al., ASPLOS 2024, github.com/UMass-LIDS/Proteus traces/twitter"
    licence = "for comparison only (Twitter data)"

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        files = files_in(path, "*.txt")

        def batches() -> Iterator[Batch]:
            for file in files:
                kinds: Kinds = {"t_ms": "number"}
                rows = Rows(file, kinds, names=("t_ms", "accuracy", "deadline_ms"))
                for batch in rows:
                    yield Batch(rows.amounts(batch, "t_ms") / 1000.0)

        derived = f"superposed: {', '.join(file.stem for file in files)}" if len(files) > 1 else None
        parts = [
            self._recorded(path, covers="rate curve", derived=derived),
            self._recorded(path, covers="arrival times", derived="drawn by its authors").model_copy(
                update={"kind": "synthetic"}
            ),
        ]
        return Recording(batches(), tuple(parts))


class DiffusionDB(Format):
    """One row per generated image with prompt and time: what people asked a text-to-image bot for, to the minute.

    Reads ``metadata.parquet`` or ``metadata-large.parquet`` as published (columns ``prompt``, ``timestamp``), or
    a CSV file with the same columns. Times count from the first; rows without a time are left out.
    """

    name = "diffusiondb"
    description = "DiffusionDB: prompts of a text-to-image bot with their times (Parquet or CSV)"
    source = "DiffusionDB, Wang et al., ACL 2023 (arXiv 2210.14896), huggingface.co/datasets/poloclub/diffusiondb"
    licence = "CC0-1.0"

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        derived = "rows with a timestamp"
        return Recording(self._batches(path), (self._recorded(path, derived=derived),), from_first=True)

    def _batches(self, path: Path) -> Iterator[Batch]:
        clock = Clock()
        if path.suffix == ".parquet":
            for row, found in parquet_batches(path, ("prompt", "timestamp")):
                columns = {name: found[name].to_pylist() for name in ("prompt", "timestamp")}
                yield self._batch(path, row, columns, clock)
            return
        before = 0
        for batch in Rows(path, {"prompt": "text", "timestamp": "text"}):
            yield self._batch(path, before, batch, clock)
            before += len(batch["timestamp"])

    @staticmethod
    def _batch(path: Path, before: int, columns: dict[str, Any], clock: Clock) -> Batch:
        stamps = columns["timestamp"]
        known = [i for i, stamp in enumerate(stamps) if stamp]

        def fault(bad: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
            if bad.any():
                row = known[int(np.argmax(bad))]
                raise InputError(f"{str(stamps[row])!r} {NO_STAMP}", where=f"{path}: row {before + row + 1}")

        times = clock.seconds([str(stamps[i]) for i in known], fault)
        return Batch(times, [columns["prompt"][i] or "" for i in known])
