"""The processes of one run: whether all have come, and that none is lost.

Process 0 listens at the coordinator's address until all others have called, which says
who is missing where JAX would only say that time is up. The connections then stay: one
that breaks tells at once that a process has ended, where JAX would wait for heartbeats
and a collective for ever. JAX's coordination service takes over the port.

A process that is silent but whose connection stands (its machine lost power, or it was
halted) is found by JAX's own heartbeats, which no work of Python can delay; how long
each has been silent is told through the connections, for the message.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from absl import logging

from lmjax.core.errors import ConfigError, UserError

_TOLD_EVERY = 15.0  # seconds between lines that say who is waited for
_ANSWER = 10.0  # seconds for what takes none while the other end is well
_LONGEST = 1 << 20  # bytes of a message; whoever sends more is none of ours


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Who this process is among those of its run.

    Attributes:
      address: host:port of process 0, where all meet.
      count: processes in all.
      index: of this one, from 0.
      local_device_ids: devices of this machine that it takes; None: all of them.
    """

    address: str
    count: int
    index: int
    local_device_ids: Sequence[int] | None = None

    @property
    def name(self) -> str:
        """This process, for a person."""
        return f"process {self.index} of {self.count} on host {socket.gethostname()}"

    @property
    def host(self) -> str:
        """Of process 0."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Of process 0."""
        return int(self.address.rpartition(":")[2])


class Line:
    """A connection to another process: messages are JSON objects, one a line.

    Attributes:
      index: of the process at its other end; -1 until it has said who it is.
      host: its machine.
      heard: when something last came from it, on the monotonic clock.
      closed: whether it is of no use any more.
      foreign: whether what came is not of this protocol.
      left: whether the other end has said that it is done.
    """

    def __init__(self, connection: socket.socket, index: int = -1, host: str = ""):
        self.socket, self.index, self.host = connection, index, host
        self.heard = time.monotonic()
        self.closed = self.foreign = self.left = False
        self._rest, self._sending = b"", threading.Lock()
        connection.settimeout(_ANSWER)

    @property
    def name(self) -> str:
        """The other process, for a person."""
        return f"process {self.index} (host {self.host})"

    def send(self, **message: Any) -> None:
        """Sends one message; a broken connection is noticed when it is read."""
        try:
            with self._sending:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.closed = True

    def read(self) -> list[dict[str, Any]]:
        """What has come; waits for something where nothing has."""
        try:
            data = self.socket.recv(_LONGEST)
        except OSError:
            data = b""
        self.closed |= not data
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.foreign |= len(self._rest) > _LONGEST
        messages = []
        for line in lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            if isinstance(message, dict):
                messages.append(message)
            else:
                self.foreign = True
        self.closed |= self.foreign
        return messages

    def close(self) -> None:
        """Ends the connection."""
        self.closed = True
        self.socket.close()


def meet(here: Coordinates, seconds: float) -> dict[int, Line]:
    """Waits until all processes of the run have come.

    Returns:
      Connections by the index of the process at the other end: to all others from
      process 0, to process 0 from the others.

    Raises:
      UserError: when they have not come in time, or the address is of no use.
      ConfigError: when two say that they are the same, or do not belong together.
    """
    deadline = time.monotonic() + seconds
    if here.count == 1:
        return {}
    if here.index:
        return {0: _Caller(here, seconds).call(deadline)}
    return _Roll(here, seconds).take(deadline)


def _versions() -> dict[str, str]:
    """Of what must be the same everywhere: else the programs differ."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}


def _absent(
    here: Coordinates, missing: Sequence[int], seconds: float, cause: str = ""
) -> UserError:
    word = "process" if len(missing) == 1 else "processes"
    numbers = ", ".join(map(str, missing))
    return UserError(
        f"{word} {numbers} of {here.count} did not come within {seconds:.0f} s"
        + (f": {cause}" if cause else ""),
        where=f"coordinator {here.address}; this is {here.name}",
        remedy="run the same command on every host, each with a parallel.process_index "
        f"of its own from 0 to {here.count - 1}; see whether a firewall lets every "
        "host reach the coordinator's address, and what those that are missing have "
        "printed; --config.parallel.start_timeout waits longer",
    )


class _Roll:
    """Process 0: takes the calls of all others."""

    def __init__(self, here: Coordinates, seconds: float):
        self.here, self.seconds = here, seconds
        self.lines: dict[int, Line] = {}

    def take(self, deadline: float) -> dict[int, Line]:
        with contextlib.ExitStack() as calls:
            self._answer_all(deadline, calls)
            self._tell(go=True, host=socket.gethostname())
            calls.pop_all()  # they stay; where anything is raised they end
        return self.lines

    def _answer_all(self, deadline: float, calls: contextlib.ExitStack) -> None:
        told = time.monotonic()
        with self._listener() as listener, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while missing := self._missing():
                if time.monotonic() > deadline:
                    self._tell(missing=missing, over=True)
                    raise _absent(self.here, missing, self.seconds)
                for key, _ in selector.select(timeout=0.5):
                    if key.fileobj is listener:
                        line = Line(listener.accept()[0])
                        calls.callback(line.close)
                        selector.register(line.socket, selectors.EVENT_READ, line)
                    elif not self._hears(key.data):
                        selector.unregister(key.fileobj)
                        key.data.close()
                self._tell(missing=self._missing())
                if time.monotonic() - told > _TOLD_EVERY:
                    told = time.monotonic()
                    logging.info("waiting for processes %s", self._missing())
            for key in list(selector.get_map().values()):
                if key.data and key.data not in self.lines.values():
                    key.data.close()  # said nothing

    def _missing(self) -> list[int]:
        return sorted(set(range(1, self.here.count)) - set(self.lines))

    def _tell(self, **message: Any) -> None:
        for line in self.lines.values():
            line.send(**message)

    def _listener(self) -> socket.socket:
        try:
            socket.getaddrinfo(self.here.host, self.here.port)
        except socket.gaierror as error:
            raise _unresolved(self.here, error) from error
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", self.here.port), family=socket.AF_INET6, dualstack_ipv6=True
                )
            return socket.create_server(("", self.here.port))
        except OSError as error:
            raise UserError(
                f"port {self.here.port} of this host cannot be had: {error.strerror}",
                where=f"coordinator {self.here.address}; this is {self.here.name}",
                remedy="another process has it: perhaps one of an earlier start that "
                "still runs, or a second one with index 0; end it, or choose "
                "another port for all",
            ) from error

    def _hears(self, line: Line) -> bool:
        """Takes what a caller says; whether its connection is to stay open."""
        for hello in line.read():
            index, host = hello.get("index"), str(hello.get("host"))
            if index not in range(1, self.here.count) and not (
                isinstance(index, int) and hello.get("count") != self.here.count
            ):
                return False  # none of ours
            if wrong := self._wrong(hello):
                for other in (line, *self.lines.values()):
                    other.send(refused=wrong)
                raise _refused(self.here, wrong)
            line.index, line.host = index, host
            self.lines[index] = line
            logging.info(
                "process %d of %d has come, host %s", index, self.here.count, host
            )
        if line.closed and self.lines.get(line.index) is line:
            del self.lines[line.index]
        return not line.closed

    def _wrong(self, hello: dict[str, Any]) -> str:
        index, count = hello["index"], hello.get("count")
        if count != self.here.count:
            return (
                f"process {index} on host {hello.get('host')} says that they are "
                f"{count}, and process 0 that they are {self.here.count}"
            )
        if hello.get("versions") != _versions():
            return (
                f"process {index} on host {hello.get('host')} has other packages "
                f"({hello.get('versions')}) than process 0 ({_versions()})"
            )
        if index in self.lines:
            return (
                f"two processes say that they are number {index} of {count}, on hosts "
                f"{self.lines[index].host} and {hello.get('host')}"
            )
        return ""


class _Caller:
    """Every other process: calls process 0 until it answers."""

    def __init__(self, here: Coordinates, seconds: float):
        self.here, self.seconds = here, seconds
        self.cause = ""
        self.missing: list[int] = [0]
        self._told = time.monotonic()

    def call(self, deadline: float) -> Line:
        while True:
            if line := self._connected():
                with contextlib.ExitStack() as calls:
                    calls.callback(line.close)
                    # Process 0 may have begun to wait later, and knows who is missing.
                    if self._admitted(line, deadline + 1.0):
                        calls.pop_all()  # it stays
                        return line
            if time.monotonic() > deadline:
                cause = self.cause if self.missing == [0] else ""
                raise _absent(self.here, self.missing, self.seconds, cause)
            self._tell()
            time.sleep(0.2)

    def _tell(self) -> None:
        if time.monotonic() - self._told > _TOLD_EVERY:
            self._told = time.monotonic()
            logging.info(
                "waiting for processes %s; coordinator %s%s",
                self.missing,
                self.here.address,
                f": {self.cause}" if self.cause else "",
            )

    def _connected(self) -> Line | None:
        address = (self.here.host, self.here.port)
        try:
            return Line(socket.create_connection(address, timeout=5.0), 0)
        except socket.gaierror as error:
            self.cause = f"{self.here.host} does not resolve ({error.strerror})"
        except OSError as error:
            self.cause = error.strerror or str(error)
        return None

    def _admitted(self, line: Line, deadline: float) -> bool:
        """Whether all have come; False where the connection breaks or time is up."""
        line.send(
            index=self.here.index,
            count=self.here.count,
            host=socket.gethostname(),
            versions=_versions(),
        )
        while (left := deadline - time.monotonic()) > 0 and not line.closed:
            line.socket.settimeout(left)
            for message in line.read():
                if "refused" in message:
                    raise _refused(self.here, str(message["refused"]))
                if "missing" in message:
                    self.missing = message["missing"]
                    self._tell()
                if message.get("over"):
                    raise _absent(self.here, self.missing, self.seconds)
                if message.get("go"):
                    line.host = str(message.get("host"))
                    line.socket.settimeout(_ANSWER)
                    return True
        if line.foreign:
            raise UserError(
                "what answers at the coordinator's address is no process of this run",
                where=f"coordinator {self.here.address}; this is {self.here.name}",
                remedy="end the process that has this port, or choose another for all",
            )
        return False


def _unresolved(here: Coordinates, error: socket.gaierror) -> UserError:
    return UserError(
        f"the coordinator's host {here.host!r} does not resolve: {error.strerror}",
        where=f"coordinator {here.address}; this is {here.name}",
        remedy="give the name or the number by which all hosts reach that of process 0",
    )


def _refused(here: Coordinates, wrong: str) -> ConfigError:
    return ConfigError(
        wrong,
        where=f"coordinator {here.address}; this is {here.name}",
        remedy="run the same command, from the same environment, on every host, each "
        "with a parallel.process_index of its own",
    )
