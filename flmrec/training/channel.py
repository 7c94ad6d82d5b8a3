"""What ranks tell the driver while they run: lines of progress, and how they failed.

A socket beside the launcher, because no launcher brings a rank's own words back: Horovod and TorchDistributor report
a failed rank and a killed one with the same general error. Connections prove a secret key; messages are JSON.
"""

import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from types import TracebackType
from typing import Any

_SETTLE_S = 2.0  # for messages that are still on their way when the launcher has given up


@dataclass(frozen=True)
class Address:
    """Where the driver listens; picklable."""

    host: str
    port: int
    key: bytes


@dataclass(frozen=True)
class Failure:
    """The first thing that went wrong. kind "" and trace "": the rank stopped without a word."""

    rank: int
    kind: str = ""  # class of the exception
    message: str = ""
    trace: str = ""  # the rank's own traceback

    @property
    def echo(self) -> bool:
        """True where the rank says only that another one failed."""
        return self.kind == "HorovodInternalError"


class Channel:
    """The driver's end: calls `on_line(text)` for each line of progress and keeps the first failure."""

    def __init__(self, host: str, bind_address: str, on_line: Callable[[str], None]) -> None:
        self._key = secrets.token_bytes(32)
        self._listener = Listener((bind_address, 0), backlog=128, authkey=self._key)
        self.address = Address(host, self._listener.address[1], self._key)
        self._on_line = on_line
        self._lock = threading.Lock()
        self._failure: Failure | None = None
        self._closed = False
        self._listeners: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Channel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._listener.close()
        for listener in self._listeners:
            listener.join(_SETTLE_S)

    def failure(self) -> Failure | None:
        """The failure that came first, or that which others echo, after a moment for what is still on its way."""
        deadline = time.monotonic() + _SETTLE_S
        while (self._failure is None or self._failure.echo) and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._failure

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except (AuthenticationError, OSError, EOFError):
                continue  # a stranger, or the end
            self._listeners.append(threading.Thread(target=self._listen, args=(connection,), daemon=True))
            self._listeners[-1].start()

    def _listen(self, connection: Connection) -> None:
        rank = -1
        try:
            while True:
                message: dict[str, Any] = json.loads(connection.recv_bytes())
                rank = message["rank"]
                if message["what"] == "line":
                    self._on_line(message["text"])
                elif message["what"] == "failed":
                    self._fail(Failure(rank, message["kind"], message["message"], message["trace"]))
                    return
                elif message["what"] == "done":
                    return
        except (EOFError, OSError):
            if rank >= 0:  # else it was not one of ours
                self._fail(Failure(rank))
        finally:
            connection.close()

    def _fail(self, failure: Failure) -> None:
        with self._lock:
            if self._failure is None or self._failure.echo:
                self._failure = failure


class Post:
    """A rank's end."""

    def __init__(self, address: Address, rank: int) -> None:
        self._rank = rank
        self._connection = Client((address.host, address.port), authkey=address.key)
        self._send("started")

    def line(self, text: str) -> None:
        """Shows a line of progress to the person who waits."""
        self._send("line", text=text)

    def failed(self, kind: str, message: str, trace: str) -> None:
        self._send("failed", kind=kind, message=message, trace=trace)

    def done(self) -> None:
        self._send("done")

    def _send(self, what: str, **values: str) -> None:
        self._connection.send_bytes(json.dumps({"rank": self._rank, "what": what, **values}).encode())
