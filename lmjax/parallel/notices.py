"""Notices that a machine is about to be taken away, asked of the cloud it stands in.

Google Compute Engine, which TPU VMs and Colab stand in too, tells it through the
metadata server of the machine: preemption half a minute ahead, maintenance of the host
a minute or more. Where a scheduler sends a signal instead (Slurm), there is nothing to
ask.
"""

import datetime
import http.client
import json
import os
import pathlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import jax

CLOUD = "Google Compute Engine"
PRODUCT_FILE = pathlib.Path("/sys/class/dmi/id/product_name")  # what Linux runs on
ADDRESS = "169.254.169.254"  # of the metadata server, without asking a name server
ADDRESS_VARIABLE = "GCE_METADATA_HOST"  # another, as all of Google's libraries take it

# What urllib and its parsers raise when a server is absent, gone, or talks nonsense.
_NO_ANSWER = (OSError, http.client.HTTPException, ValueError)
_AHEAD = datetime.timedelta(minutes=5)  # of planned maintenance, to stop for it


def watch(told: Callable[[str], None], *, platform: str = "") -> "Watch | None":
    """Calls `told` once, from a thread, when this machine is about to be taken away.

    Args:
      told: gets the reason, such as "Google Compute Engine: preempted".
      platform: of the devices; empty asks JAX. A machine with a GPU or a TPU is stopped
        by maintenance through which one with neither is moved while it runs.

    Returns:
      The watch, to be closed, or None on machines that have nobody to ask.
    """
    platform = platform or jax.default_backend()
    address = _server(platform)
    return Watch(address, told, moves=platform == "cpu") if address else None


def _server(platform: str) -> str:
    """Address of the metadata server; empty where there is none to expect."""
    if given := os.environ.get(ADDRESS_VARIABLE, ""):
        return given
    try:
        product = PRODUCT_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        product = ""
    return ADDRESS if platform == "tpu" or "Google" in product else ""


class Watch:
    """Threads that wait for a metadata server to say that the machine goes.

    They end with the process, and quietly where no such server answers.

    Args:
      address: host, or host:port.
      told: gets the first reason, and no other.
      moves: whether the machine is moved in maintenance, rather than stopped.
      seconds: that the server is asked to wait for news, and at most between questions.
    """

    def __init__(
        self,
        address: str,
        told: Callable[[str], None],
        *,
        moves: bool,
        seconds: float = 30.0,
    ):
        self._base = f"http://{address}/computeMetadata/v1/instance"
        self._told, self._seconds = told, seconds
        # A proxy knows the metadata of its own machine, if any.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._lock, self._over = threading.Lock(), threading.Event()
        keys = {
            "preempted": _preempted,
            "maintenance-event": _stopped if moves else _stopped_or_moved,
        }
        if not moves:
            keys["upcoming-maintenance"] = _soon
        for key, read in keys.items():
            threading.Thread(
                target=self._follow,
                args=(key, read),
                name=f"notices-{key}",
                daemon=True,
            ).start()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Tells nothing from here on; a question that is open is left to end."""
        with self._lock:
            self._over.set()

    def _follow(self, key: str, read: Callable[[str], str]) -> None:
        """Reads a value whenever it changes, until it says that the machine goes."""
        etag, met = "", False
        while not self._over.is_set():
            try:
                value, newer = self._ask(key, etag)
            except _NO_ANSWER:
                if not met:
                    return  # nobody is there
                value, newer = "", ""
            met = True
            if reason := read(value):
                self._tell(reason)
            elif not newer or newer == etag:
                # Either the server has waited for news, or it does not know how to, or
                # has none of this kind. The pause is short beside the notice.
                self._over.wait(min(self._seconds, 5.0))
            etag = newer

    def _ask(self, key: str, etag: str) -> tuple[str, str]:
        """A value and its version, once it has another than `etag`, or after a while.

        Both are empty where the machine has no such value, and when the server is busy.
        """
        url = f"{self._base}/{key}?alt=" + ("json" if key.startswith("up") else "text")
        if etag:
            url += f"&wait_for_change=true&last_etag={etag}"
            url += f"&timeout_sec={max(round(self._seconds), 1)}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        patience = self._seconds + 5.0 if etag else 5.0
        try:
            with self._opener.open(request, timeout=patience) as reply:
                if reply.headers.get("Metadata-Flavor") != "Google":
                    raise OSError("another service has this address")
                return reply.read().decode().strip(), reply.headers.get("ETag", "")
        except urllib.error.HTTPError as error:
            error.close()
            if error.headers.get("Metadata-Flavor") != "Google":
                raise
            return "", ""

    def _tell(self, reason: str) -> None:
        with self._lock:
            first = not self._over.is_set()
            self._over.set()
        if first:
            self._told(f"{CLOUD}: {reason}")


def _preempted(value: str) -> str:
    return "preempted" if value.upper() == "TRUE" else ""


def _stopped(value: str) -> str:
    return "maintenance of the host" if value.upper().startswith("TERMINATE") else ""


def _stopped_or_moved(value: str) -> str:
    return "maintenance of the host" if value.upper() not in ("", "NONE") else ""


def _soon(value: str) -> str:
    """Maintenance that goes on or begins within minutes: it is known days ahead."""
    try:
        fields = json.loads(value)
        fields = {k.replace("_", "").lower(): v for k, v in fields.items()}
        going = fields.get("maintenancestatus") == "ONGOING"
        begins = _time(fields.get("windowstarttime"))
    except (ValueError, AttributeError):  # nothing is planned, or nothing we can read
        return ""
    now = datetime.datetime.now(datetime.UTC)
    soon = begins is not None and begins - now <= _AHEAD
    return "maintenance of the host" if going or soon else ""


def _time(text: Any) -> datetime.datetime | None:
    """A time as RFC 3339 writes it; one without a zone is of UTC."""
    if not isinstance(text, str):
        return None
    time = datetime.datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
