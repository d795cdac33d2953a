"""Messages between the host and the processes that it starts, and the main loop of such a process.

A message is a pickle behind its length, over a socket pair that nobody else can reach. The host's end is part of
its event loop (:mod:`argus_sim.live.processes`); a process's end is here, and blocks.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from socket import socket
from typing import Any, Final

from argus_sim.errors import InputError

#: Before each message: its length.
HEAD: Final = struct.Struct(">Q")

#: Signals that reach a whole process group: what becomes of a process is up to its host alone.
GROUP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Ready:
    """The process is set up and takes messages."""


@dataclass(frozen=True, slots=True)
class Beat:
    """The process is alive, however busy."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The process is about to end.

    Attributes:
        reason: Why, for people.
        where: Of an :class:`InputError`, where it is.
    """

    reason: str
    where: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        if isinstance(error, InputError):
            return cls(error.message, error.where)
        first = (str(error).strip() or "no message").splitlines()[0]
        return cls(f"{type(error).__name__}: {first}"[:300])


def encode(message: Any) -> bytes:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEAD.pack(len(data)) + data


class _HostGone(Exception):
    """The other end is closed."""


class _Channel:
    """A process's end; messages may be sent from any thread."""

    def __init__(self, end: socket) -> None:
        self._socket, self._lock = end, threading.Lock()

    def send(self, message: Any) -> None:
        data = encode(message)
        with self._lock:
            try:
                self._socket.sendall(data)
            except OSError:
                raise _HostGone from None

    def receive(self) -> Any:
        return pickle.loads(self._read(HEAD.unpack(self._read(HEAD.size))[0]))

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                part = self._socket.recv(min(size - len(data), 1 << 20))
            except OSError:
                raise _HostGone from None
            if not part:
                raise _HostGone
            data += part
        return bytes(data)


#: What a process does with a message: its answer, None for none.
Handler = Callable[[Any], Any]


def run_process(end: socket, prepare: Callable[..., Handler], args: tuple[Any, ...], beat_s: float) -> None:
    """The whole life of a process: set up, then answer messages until the host closes the connection.

    It never outlives its host: a beat that nobody takes ends it, whatever it is doing.
    """
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # the host held them back until now
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    channel = _Channel(end)
    threading.Thread(target=_beat, args=(channel, beat_s), daemon=True).start()
    status = 1
    try:
        handle = prepare(*args)
        channel.send(Ready())
        while True:
            answer = handle(channel.receive())
            if answer is not None:
                channel.send(answer)
    except _HostGone:
        status = 0
    except BaseException as error:
        if not isinstance(error, InputError):
            traceback.print_exc()
        with contextlib.suppress(_HostGone):
            channel.send(Failed.of(error))
    sys.stderr.flush()
    os._exit(status)  # there is nothing to tidy up, and libraries' threads may not want to end


def _beat(channel: _Channel, beat_s: float) -> None:
    while True:
        time.sleep(beat_s)
        try:
            channel.send(Beat())
        except _HostGone:
            os._exit(0)
