"""Processes that wait for each other at the start: who is missing, and who is wrong.

Threads stand for processes here.
"""

import concurrent.futures
import socket
import threading
from collections.abc import Iterator

import pytest
from jax._src import clusters

from lmjax.config.schema import ParallelConfig
from lmjax.core.errors import ConfigError, UserError
from lmjax.parallel import hosts, peers, processes
from lmjax.parallel.mesh import build_mesh
from lmjax.parallel.peers import Coordinates
from tests.parallel.peer_processes import free_port

Met = dict[int, dict[int, peers.Line] | Exception]


@pytest.fixture
def address() -> str:
    return f"localhost:{free_port()}"


def _meet(*all_here: Coordinates, seconds: float = 20.0) -> Met:
    """What each finds; the connections are closed."""
    with concurrent.futures.ThreadPoolExecutor(len(all_here)) as pool:
        futures = [pool.submit(peers.meet, here, seconds) for here in all_here]
    met: Met = {}
    for place, future in enumerate(futures):
        met[place] = future.exception() or future.result()
        if not isinstance(met[place], Exception):
            for line in met[place].values():
                line.close()
    return met


def _coordinates(address: str, count: int, *indices: int) -> list[Coordinates]:
    return [Coordinates(address=address, count=count, index=i) for i in indices]


def test_all_meet_in_any_order(address: str) -> None:
    met = _meet(*_coordinates(address, 3, 2, 0, 1))
    assert {line: other.host for line, other in met[1].items()} == {
        1: socket.gethostname(),
        2: socket.gethostname(),
    }
    assert list(met[0]) == list(met[2]) == [0]


def test_those_that_came_say_who_did_not(address: str) -> None:
    met = _meet(*_coordinates(address, 5, 0, 2, 3), seconds=1.0)
    for error in met.values():
        assert isinstance(error, UserError)
        assert error.status == 1
        assert error.what == "processes 1, 4 of 5 did not come within 1 s"
        assert f"coordinator {address}; this is process " in error.where
        assert "index of its own from 0 to 4" in error.remedy
        assert "firewall" in error.remedy


@pytest.mark.parametrize(
    ("host", "cause"),
    [("localhost", "Connection refused"), ("no.such.host.invalid", "does not resolve")],
)
def test_a_first_process_that_does_not_come_is_named(host: str, cause: str) -> None:
    (error,) = _meet(*_coordinates(f"{host}:{free_port()}", 2, 1), seconds=0.5).values()
    assert isinstance(error, UserError)
    assert error.what.startswith("process 0 of 2 did not come within 0 s: ")
    assert cause in error.what


def test_an_address_that_does_not_resolve_is_told_at_once() -> None:
    (error,) = _meet(*_coordinates("no.such.host.invalid:1234", 2, 0)).values()
    assert isinstance(error, UserError)
    assert "'no.such.host.invalid' does not resolve" in error.what


def test_a_port_that_is_taken_is_told_at_once() -> None:
    with socket.create_server(("", 0)) as server:
        taken = f"localhost:{server.getsockname()[1]}"
        (error,) = _meet(*_coordinates(taken, 2, 0)).values()
    assert isinstance(error, UserError)
    assert "cannot be had: Address already in use" in error.what
    assert "second one with index 0" in error.remedy


def test_two_with_one_index_are_told_apart_from_none(address: str) -> None:
    met = _meet(*_coordinates(address, 3, 0, 1, 1))
    for error in met.values():
        assert isinstance(error, ConfigError)
        assert "two processes say that they are number 1 of 3" in error.what
        assert socket.gethostname() in error.what


def test_processes_that_count_differently_do_not_belong_together(address: str) -> None:
    first, second = _coordinates(address, 2, 0) + _coordinates(address, 3, 2)
    for error in _meet(first, second).values():
        assert isinstance(error, ConfigError)
        assert "says that they are 3, and process 0 that they are 2" in error.what


def test_other_packages_are_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = iter([{"jax": "1"}, {"jax": "2"}, {"jax": "2"}])
    monkeypatch.setattr(peers, "_versions", lambda: next(versions))
    for error in _meet(*_coordinates(address, 2, 0, 1)).values():
        assert isinstance(error, ConfigError)
        assert "other packages ({'jax': '1'}) than process 0" in error.what


@pytest.fixture
def stranger() -> Iterator[str]:
    """The address of a server that speaks first, and something else."""
    with socket.create_server(("localhost", 0)) as server:

        def answer() -> None:
            connection = server.accept()[0]
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"localhost:{server.getsockname()[1]}"
        thread.join()


def test_a_stranger_at_the_address_is_told(stranger: str) -> None:
    (error,) = _meet(*_coordinates(stranger, 2, 1)).values()
    assert isinstance(error, UserError)
    assert "no process of this run" in error.what


def test_strangers_that_call_are_sent_away(address: str) -> None:
    """A scan of ports, and one that tells nonsense, keep nobody from meeting."""
    here, other = _coordinates(address, 2, 0, 1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(peers.meet, here, 20.0)
        sent = [
            b"GET / HTTP/1.1\r\n\r\n",
            b'{"index": 7, "count": 2}\n',
            b"[" * 9999,
            b"",
        ]
        for data in sent:
            _send(here, data)
        lines = peers.meet(other, 20.0) | first.result()
    for line in lines.values():
        line.close()
    assert sorted(lines) == [0, 1]


def _send(here: Coordinates, data: bytes) -> None:
    while True:
        try:
            connection = socket.create_connection((here.host, here.port))
            break
        except ConnectionRefusedError:
            continue
    with connection:
        connection.sendall(data)


SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_NODELIST": "node[003-004],other",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def test_what_started_the_processes_says_who_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ParallelConfig(coordinator="auto")
    with pytest.raises(ConfigError, match="does not say who takes part"):
        processes.find_coordinates(config)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    here = processes.find_coordinates(config)
    assert here.address.startswith("node003:")
    assert (here.count, here.index, here.local_device_ids) == (2, 1, [0])
    # Not asked for, a job of Slurm is one process: as in an interactive session.
    assert processes.find_coordinates(ParallelConfig()) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert processes.find_coordinates(config) is None


def test_a_tpu_pod_is_found_without_being_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clusters.cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(processes.cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,worker-1")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "1")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "0")
    assert processes.find_coordinates(ParallelConfig()) is None  # JAX is told: CPU
    monkeypatch.setattr(processes, "_platforms", lambda: "")
    here = processes.find_coordinates(ParallelConfig())
    assert (here.address, here.count, here.index) == ("localhost:8482", 2, 1)


def test_one_process_is_not_started_and_votes_alone() -> None:
    with processes.together(ParallelConfig()):
        votes = hosts.Votes(build_mesh(ParallelConfig()))
        assert [votes.cast(bits) for bits in (0, 3, 1)] == [0, 3, 1]
    one = ParallelConfig(coordinator="host:1", num_processes=1, process_index=0)
    assert processes.find_coordinates(one) is None
