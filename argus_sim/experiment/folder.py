"""The folder that results go to: who writes there, what may be replaced, and which runs have ended."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from argus_sim.errors import InputError
from argus_sim.experiment.config import is_lock
from argus_sim.experiment.lockfile import LOCK, dump_lock
from argus_sim.experiment.settings import read_yaml
from argus_sim.files import write_atomically

#: The key in the lock file of a search for sizes: what was varied. Its folder has one for each size.
SIZED = "sized"


@contextmanager
def prepared(out: Path, lock: dict[str, Any], *, resume: bool) -> Iterator[None]:
    """The folder ready for results, empty but for the lock file or as it is when resuming, and for us alone.

    Raises:
        InputError: It holds something else, or somebody else writes there.
    """
    if out.exists() and not out.is_dir():
        raise InputError("is not a folder", where=str(out))
    out.mkdir(parents=True, exist_ok=True)
    with _held(out):
        if resume and (out / LOCK).exists():
            _check_same(out, lock)
        else:
            _clear(out)
            write_atomically(out / LOCK, dump_lock(lock))
        yield


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Two processes that write into one folder would mix their runs."""
    if os.name != "posix":
        yield
        return
    import fcntl

    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            os.close(folder)
            raise InputError(
                "another process writes results there; wait until it has ended, or choose another --out",
                where=str(out),
            ) from None
        # Else a file system that cannot lock a folder: then nobody can hold it.
    try:
        yield
    finally:
        os.close(folder)


def check_out(out: Path) -> None:
    """Results may go to an empty folder, and in the place of other results; :class:`InputError` for any other."""
    if out.exists() and not out.is_dir():
        raise InputError("is not a folder", where=str(out))
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / LOCK).exists():
        raise InputError("is not empty and not an experiment's results; choose another --out", where=str(out))
    if Path.cwd().resolve().is_relative_to(out.resolve()):
        raise InputError(
            "is the folder that you are in, or one above it, and not empty; choose another --out", where=str(out)
        )
    was = _lock_in(out)
    for entry in sorted(out.iterdir()):
        if entry.is_symlink() or not _is_made(entry, was):
            raise InputError(
                f"holds {entry.name}, which is of no run; move it, or choose another --out", where=str(out)
            )


def _lock_in(out: Path) -> dict[str, Any]:
    was = read_yaml(out / LOCK)
    if not is_lock(was) or not isinstance(was["experiment"], dict):
        raise InputError("is not a lock file", where=str(out / LOCK))
    return was


def _is_made(entry: Path, lock: dict[str, Any]) -> bool:
    """Whether what this lock file is of leaves such an entry in its folder.

    The experiment is as an older version may have written it, so it is read without its classes.
    """
    name, experiment = entry.name, lock["experiment"]
    sized = SIZED in lock
    if entry.is_dir():
        axes = {"trace"} if sized else (experiment.get("sweep") or {}).get("axes") or {}
        is_point = name.partition("=")[0] in axes and (entry / LOCK).is_file()
        labels = [] if sized else [policy.get("label") for policy in experiment.get("policies") or []]
        return is_point or name == "figures" or name in labels
    tables = ("sizes.csv", "sizing.csv") if sized else ("summary.csv", "report.html")
    files = "|".join(map(re.escape, (LOCK, *tables)))
    return re.fullmatch(rf"(?:{files})|\.(?:{files})\.\d+\.part", name) is not None


def _clear(out: Path) -> None:
    check_out(out)
    # A run has ended where its summary is: cut off in the middle of this, none is to look as if it had.
    for summary in out.rglob("summary.json"):
        summary.unlink()
    for entry in out.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _check_same(out: Path, lock: dict[str, Any]) -> None:
    was = _lock_in(out)
    if was != lock:
        parts = [key for key in {**lock, **was} if was.get(key) != lock.get(key)]
        raise InputError(
            f"holds results of a different run ({', '.join(parts)} differ); run without --resume to replace "
            "them, or choose another --out",
            where=str(out),
        )


def digest_of(lock: dict[str, Any]) -> str:
    """What a run's summary says of the lock file that it was made under."""
    return hashlib.sha256(dump_lock(lock)).hexdigest()


def summary_in(run: Path, lock: str | None = None) -> dict[str, Any] | None:
    """The summary in a run's folder; None where no run has ended, or only one under another lock file.

    Args:
        lock: The digest of the lock file; by default any.
    """
    try:
        summary = json.loads((run / "summary.json").read_text("utf-8"))
        of = summary.pop("lock", None)
    except (FileNotFoundError, ValueError, AttributeError):
        return None
    return summary if lock in (None, of) else None
