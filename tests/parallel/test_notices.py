"""A cloud that is about to take the machine is heard, once; silence is no error."""

import datetime
import http.server
import json
import queue
import threading
import time
import urllib.parse
from collections.abc import Iterator

import pytest

from lmjax.parallel import notices
from lmjax.parallel.notices import Watch, watch

PREEMPTED = "Google Compute Engine: preempted"
MAINTENANCE = "Google Compute Engine: maintenance of the host"


class MetadataServer(http.server.ThreadingHTTPServer):
    """Answers as the metadata server of a machine does.

    Attributes:
      values: by key; what is absent is not found.
      waits: whether it can wait for a change.
      flavor: what it calls itself.
      asked: the parameters of each question, by key.
    """

    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.waits, self.flavor = True, "Google"
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.changed = threading.Condition()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def say(self, key: str, value: str) -> None:
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def wait_for_questions(self, count: int) -> None:
        """Returns once so many questions have come."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, timeout=10)


class Answer(http.server.BaseHTTPRequestHandler):
    server: MetadataServer

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        key = path.removeprefix("/computeMetadata/v1/instance/")
        parameters = dict(urllib.parse.parse_qsl(query))
        with self.server.changed:
            self.server.asked.append((key, parameters))
            self.server.changed.notify_all()
            if self.server.waits and "wait_for_change" in parameters:
                self.server.changed.wait_for(
                    lambda: self._etag(key) != parameters["last_etag"], timeout=0.1
                )
            value, etag = self.server.values.get(key), self._etag(key)
        right = self.headers.get("Metadata-Flavor") == "Google"
        self.send_response(404 if value is None else 200 if right else 403)
        self.send_header("Metadata-Flavor", self.server.flavor)
        self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write((value or "").encode())

    def _etag(self, key: str) -> str:
        return f"{hash(self.server.values.get(key)):x}"

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    with MetadataServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def _hear(server: MetadataServer, *, moves: bool = True) -> tuple[Watch, queue.Queue]:
    told: queue.Queue[str] = queue.Queue()
    return Watch(server.address, told.put, moves=moves, seconds=0.02), told


def _silent(told: queue.Queue, server: MetadataServer, questions: int = 8) -> bool:
    """Whether nothing is told though the server has answered."""
    server.wait_for_questions(len(server.asked) + questions)
    return told.empty()


@pytest.mark.parametrize("waits", [True, False])
def test_preemption_is_told_once(server: MetadataServer, waits: bool) -> None:
    server.waits = waits
    watch, told = _hear(server)
    with watch:
        assert _silent(told, server, 4)
        server.say("preempted", "TRUE")
        assert told.get(timeout=5) == PREEMPTED
        server.say("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
        time.sleep(0.1)
        assert told.empty()


def test_the_server_is_asked_to_wait_for_another_version(
    server: MetadataServer,
) -> None:
    watch, _ = _hear(server)
    with watch:
        server.wait_for_questions(4)
    first, second = [asked for key, asked in server.asked if key == "preempted"][:2]
    assert "wait_for_change" not in first, "the value of now is wanted first"
    assert second["wait_for_change"] == "true"
    assert second["last_etag"] == f"{hash('FALSE'):x}"
    assert int(second["timeout_sec"]) >= 1


def test_a_machine_that_is_taken_at_the_start_is_told(server: MetadataServer) -> None:
    server.values["preempted"] = "TRUE"
    watch, told = _hear(server)
    with watch:
        assert told.get(timeout=5) == PREEMPTED


@pytest.mark.parametrize(
    ("event", "moves", "stops"),
    [
        ("TERMINATE_ON_HOST_MAINTENANCE", True, True),
        ("TERMINATE_ON_HOST_MAINTENANCE", False, True),
        ("MIGRATE_ON_HOST_MAINTENANCE", True, False),
        ("MIGRATE_ON_HOST_MAINTENANCE", False, True),
    ],
)
def test_maintenance_stops_what_cannot_be_moved(
    server: MetadataServer, event: str, moves: bool, stops: bool
) -> None:
    server.values["maintenance-event"] = event
    watch, told = _hear(server, moves=moves)
    with watch:
        if stops:
            assert told.get(timeout=5) == MAINTENANCE
        else:
            assert _silent(told, server)


def _in(**ahead: int) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return (now + datetime.timedelta(**ahead)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("plan", "stops"),
    [
        ({"maintenance_status": "PENDING", "window_start_time": _in(days=6)}, False),
        ({"maintenance_status": "PENDING", "window_start_time": _in(minutes=2)}, True),
        ({"maintenanceStatus": "ONGOING", "windowStartTime": _in(days=6)}, True),
        ({"window_start_time": "soon"}, False),
        (["no plan"], False),
    ],
)
def test_planned_maintenance_stops_when_it_comes(
    server: MetadataServer, plan: object, stops: bool
) -> None:
    watch, told = _hear(server, moves=False)
    with watch:
        assert _silent(told, server), "a key that is not there says nothing"
        server.say("upcoming-maintenance", json.dumps(plan))
        if stops:
            assert told.get(timeout=5) == MAINTENANCE
        else:
            assert _silent(told, server)


def test_a_closed_watch_tells_nothing(server: MetadataServer) -> None:
    watch, told = _hear(server)
    server.wait_for_questions(4)
    watch.close()
    server.say("preempted", "TRUE")
    _wait_for_end("notices-")
    assert told.empty()


def test_where_nobody_answers_the_threads_end() -> None:
    with MetadataServer() as gone:
        address = gone.address
    watch = Watch(address, pytest.fail, moves=True)
    _wait_for_end("notices-")
    watch.close()


def test_another_service_at_that_address_is_left_alone(server: MetadataServer) -> None:
    server.flavor = "Other"
    server.values = {"preempted": "TRUE"}
    watch, told = _hear(server)
    with watch:
        _wait_for_end("notices-")
    assert told.empty()
    assert len(server.asked) == 2, "once for each key"


def test_a_server_that_goes_away_is_asked_again(server: MetadataServer) -> None:
    watch, told = _hear(server)
    with watch:
        server.wait_for_questions(4)
        server.flavor = "Other"  # an answer that is none
        server.wait_for_questions(len(server.asked) + 4)
        server.flavor = "Google"
        server.say("preempted", "TRUE")
        assert told.get(timeout=5) == PREEMPTED


def _wait_for_end(name: str) -> None:
    deadline = time.monotonic() + 10
    while any(thread.name.startswith(name) for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_other_machines_have_nobody_to_ask(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.delenv(notices.ADDRESS_VARIABLE, raising=False)
    monkeypatch.setattr(notices, "PRODUCT_FILE", tmp_path / "absent")
    assert watch(pytest.fail) is None
    (tmp_path / "product").write_text("OptiPlex 7000\n")
    monkeypatch.setattr(notices, "PRODUCT_FILE", tmp_path / "product")
    assert watch(pytest.fail) is None


def test_google_machines_and_those_with_a_tpu_are_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path, server: MetadataServer
) -> None:
    monkeypatch.delenv(notices.ADDRESS_VARIABLE, raising=False)
    monkeypatch.setattr(notices, "ADDRESS", server.address)
    monkeypatch.setattr(notices, "PRODUCT_FILE", tmp_path / "product")
    for platform, product in (("tpu", "unknown"), ("cpu", "Google Compute Engine")):
        (tmp_path / "product").write_text(product)
        found = watch(pytest.fail, platform=platform)
        assert found is not None
        found.close()


def test_the_environment_names_another_server(
    monkeypatch: pytest.MonkeyPatch, server: MetadataServer
) -> None:
    monkeypatch.setenv(notices.ADDRESS_VARIABLE, server.address)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # would not answer
    server.values["preempted"] = "TRUE"
    told: queue.Queue[str] = queue.Queue()
    found = watch(told.put)
    assert found is not None
    with found:
        assert told.get(timeout=5) == PREEMPTED
