"""The Ray cluster whose actors are workers: how it is started or joined. Needs the extra ``ray``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from argus_sim.errors import InputError
from argus_sim.live.channel import GROUP_SIGNALS, Handler
from argus_sim.live.processes import Kept, Owner, Patience
from argus_sim.live.ray_actors import RayConfig, RayWorker, ray_library
from argus_sim.live.telemetry import event

#: Of the object store of a cluster that is started here: images and latents pass through it, and nothing stays.
_STORE_BYTES: Final = 256 << 20
#: For a first answer from the address of a cluster.
_CONNECT_S: Final = 5.0
#: No reports to Ray's makers. Read when Ray is imported; what is set already stays.
_NO_REPORTS: Final = ("RAY_USAGE_STATS_ENABLED", "0")
#: A cluster that is started here listens on loopback only, as Ray does where clusters are not supported.
_ON_LOOPBACK: Final = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


class RayMachines:
    """A Ray cluster.

    Args:
        config: Which, and what of it.
        prepare, args: What every worker is, as for :class:`argus_sim.live.processes.Supervised`.
        patience: With them.
    """

    def __init__(
        self, config: RayConfig, prepare: Callable[..., Handler], args: tuple[Any, ...], patience: Patience
    ) -> None:
        self._config, self._prepare, self._args, self._patience = config, prepare, args, patience
        self._opening: asyncio.Future[None] | None = None
        self._is_ours = False

    async def open(self, workers: int) -> None:
        """Start the cluster, or join it; one that this process is part of already is used, and stays.

        Raises:
            InputError: There is no such cluster, or ours is too small.
        """
        self._opening = asyncio.ensure_future(asyncio.to_thread(self._connect))
        await asyncio.shield(self._opening)
        _take_signals_back()
        wanted = {"CPU": workers * self._config.cpus, "GPU": workers * float(self._config.gpus)}
        resources = await asyncio.to_thread(ray_library().cluster_resources)
        for kind, amount in wanted.items():
            there = resources.get(kind, 0.0)
            if there >= amount:
                continue
            message = f"{workers} workers need {amount:g} {kind}s, and the Ray cluster has {there:g}"
            if self._config.address is None:
                hint = "; cluster.cpus_per_worker may be less than 1" if kind == "CPU" else ""
                raise InputError(message + hint, where="cluster.workers")
            # Machines may be about to join.
            event("waiting for Ray", level=logging.WARNING, why=message)

    def worker(self, number: int, owner: Owner) -> Kept:
        return RayWorker(self._config, f"worker {number}", self._prepare, self._args, owner, self._patience)

    async def close(self) -> None:
        if self._opening is None:
            return
        await asyncio.gather(self._opening, return_exceptions=True)
        if self._is_ours:
            self._is_ours = False
            await asyncio.to_thread(ray_library().shutdown)

    def _connect(self) -> None:
        """In a thread, since it takes seconds."""
        ray, address = ray_library(), self._config.address
        if ray.is_initialized():
            return
        # Ray prints news of the cluster to stdout, whatever `log_to_driver` says.
        ray._private.worker.print_to_stdstream = _log_news
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        try:
            if address is None:
                ray.init(address="local", include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
            else:
                _check_address(address)
                ray.init(address=address, **quiet)
        except InputError:
            raise
        except Exception as error:
            ray.shutdown()  # what of it has started
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            what = "Ray cannot be started" if address is None else f"cannot join the Ray cluster at {address}"
            raise InputError(f"{what}: {first}", where="cluster.address" if address else "cluster.kind") from None
        self._is_ours = True


def _take_signals_back() -> None:
    """Ray puts handlers of its own, which print where the program is, before those that are there."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in GROUP_SIGNALS:
        handler = signal.getsignal(number)
        if handler is not None:
            signal.signal(number, handler)
            signal.siginterrupt(number, False)


def _log_news(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """In place of Ray's function that prints."""
    event("Ray says", text=" ".join(data["lines"])[:500])


def _check_address(address: str) -> None:
    """Ray itself tries for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise InputError(f"must be HOST:PORT or auto, found {address!r}", where="cluster.address")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster at {address}: {error}", where="cluster.address") from None


def import_ray(address: str | None) -> None:
    """Import Ray, before anything else of it is used.

    Raises:
        InputError: It is not installed.
    """
    if "ray" not in sys.modules:
        os.environ.setdefault(*_NO_REPORTS)
        if address is None:
            os.environ.setdefault(*_ON_LOOPBACK)
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"Ray's workers need the ray extra, and {error.name!r} is missing: pip install 'argus-sim[live,ray]'",
            where="cluster.kind",
        ) from None
