"""Where a calibration keeps what it has done: one file per cell, each there whole or not at all.

``OUT.run/``: ``plan.json`` (what the run is about), ``cells/`` (results), ``work/`` (latents, images and
features that later cells need), ``attempts.json`` (cells that were begun and have not ended), and
``set_distances.json``. A cell is done when its JSON file is there; whatever belongs to it is written before. So a
run can be killed at any moment, and goes on with the cells that are missing.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from argus_sim.errors import InputError
from argus_sim.files import write_atomically
from calibration.plan import Settings

OK: Final = "ok"
DOES_NOT_FIT: Final = "does not fit"
NAN_IMAGES: Final = "images are not numbers"
#: Anything else that kept a cell from being done: a run that goes on tries these again.
FAILED: Final = "failed"
_NONE: Final[Mapping[str, Any]] = {}


class CannotWrite(InputError):
    """Nothing more can be kept."""


class DeviceLost(InputError):
    """The device no longer answers this process."""


class Store:
    """The cells of one run.

    Use it as a context: it holds a lock, so that two processes never work on the same run.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(out.name + ".run")
        self._lock: Any = None

    # ---- one run, one process

    def __enter__(self) -> Store:
        with _room_on_disk(self.folder):
            (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # no locks here: the user keeps count
            return self
        self._lock = open(self.folder / "lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError("another process is working on this run", where=str(self.folder)) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def planned(self) -> dict[str, Any]:
        """What the run that is there is about; empty where there is none."""
        file = self.folder / "plan.json"
        return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}

    def begin(
        self,
        settings: Settings,
        machine: Mapping[str, str],
        *,
        resume: bool,
        folders: Mapping[str, str] = _NONE,
        weights: Mapping[str, str | None] = _NONE,
    ) -> None:
        """Start a run, or check that the one that is there is the same.

        Args:
            settings: What it measures.
            machine: What it measures on and with: times of two machines, or of two versions, are not to be mixed.
            resume: Whether to go on with what is there.
            folders: Model to the folder of its weights, for who goes on; they may have been moved.
            weights: Model to what tells its weights from others, where they are here: a run that loaded others
                does not go on.

        Raises:
            InputError: There are cells and `resume` is not set, or they are of other settings, weights or another
                machine.
        """
        ours = {**settings.as_json(), **{f"machine: {what}": value for what, value in machine.items()}}
        theirs = self.planned()
        theirs.pop("folders", None)
        if theirs:
            if not resume and self.done():
                raise InputError(
                    f"holds {len(self.done())} cells of an earlier run: go on with --resume,"
                    " take another --out, or delete it",
                    where=str(self.folder),
                )
            different = {
                key: (theirs.get(key), ours.get(key))
                for key in sorted(ours.keys() | theirs.keys())
                if ours.get(key) != theirs.get(key)
            }
            for model, now in weights.items():
                # A load that failed has none, nor has one of an old run.
                then = (self.get(f"load--{model}") or {}).get("weights")
                if now is not None and then not in (None, now):
                    different[f"weights of {model}"] = (then, now)
            if different and self.done():
                shown = "; ".join(f"{key}: {then!r} then, {now!r} now" for key, (then, now) in different.items())
                raise InputError(f"cannot go on with other settings ({shown})", where=str(self.folder))
        self.write("plan.json", json.dumps({**ours, "folders": dict(folders)}, indent=2).encode())

    @contextmanager
    def attempt(self, key: str) -> Iterator[int]:
        """Note that a cell is begun, until it has ended; how often it was begun and the process ended instead.

        Whatever Python hears of is an end, but for a device that is lost: the next process is to know of that.
        """
        file = self.folder / "attempts.json"
        noted: dict[str, int] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        before = noted.pop(key, 0)
        self.write("attempts.json", json.dumps(noted | {key: before + 1}).encode())
        try:
            yield before
        except DeviceLost:
            raise
        except BaseException:
            with contextlib.suppress(InputError):  # the disk is full: what is on its way says so
                self.write("attempts.json", json.dumps(noted).encode())
            raise
        self.write("attempts.json", json.dumps(noted).encode())

    # ---- cells

    def done(self) -> set[str]:
        """Keys of the cells that are finished."""
        return {file.stem for file in (self.folder / "cells").glob("*.json")}

    def failed(self) -> set[str]:
        """Those of them that failed, and may be tried again."""
        return {key for key in self.done() if (record := self.get(key)) and record["status"] == FAILED}

    def put(self, key: str, record: dict[str, Any], rows: pd.DataFrame | None = None) -> None:
        """Keep a cell's result."""
        if rows is not None:
            buffer = io.BytesIO()
            rows.to_parquet(buffer, index=False)
            self.write(f"cells/{key}.parquet", buffer.getvalue())
        self.write(f"cells/{key}.json", json.dumps(plain(record), indent=1).encode())

    def get(self, key: str) -> dict[str, Any] | None:
        """A cell's record, or None where it is not done."""
        file = self.folder / "cells" / f"{key}.json"
        return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else None

    def rows(self, key: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "cells" / f"{key}.parquet")

    # ---- what later cells need

    def put_array(self, name: str, array: npt.NDArray[Any]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        self.write(f"work/{name}.npy", buffer.getvalue())

    def has_array(self, name: str) -> bool:
        return (self.folder / "work" / f"{name}.npy").is_file()

    def array(self, name: str) -> npt.NDArray[Any] | None:
        file = self.folder / "work" / f"{name}.npy"
        return np.load(file, allow_pickle=False) if file.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        with _room_on_disk(self.folder):
            write_atomically(self.folder / name, content)

    def clean(self) -> None:
        """Delete what only later cells needed."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)


@contextmanager
def _room_on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CannotWrite(
                "no space is left on the disk; what is done is kept: make room and go on with --resume",
                where=str(folder),
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise CannotWrite(f"cannot be written: {error.strerror}", where=str(folder)) from None
        raise


def free_bytes(folder: Path) -> int:
    """Bytes free where a folder is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free if os.path.exists(folder) else 0


def plain(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinities are null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
