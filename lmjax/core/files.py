"""Files that are there whole or not at all."""

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

_SECONDS_OF_A_DAY = 86_400


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to, which becomes `file` at the end, and is gone on an error."""
    name = f".{file.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex}.tmp"
    temporary = file.with_name(name)
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes what killed processes left of `replacing` in a folder.

    That is what no process of this machine is writing, and what is older than a day.
    """
    for file in folder.glob(".*.tmp"):
        parts = file.name.split(".")
        with contextlib.suppress(OSError):
            old = time.time() - file.stat().st_mtime > _SECONDS_OF_A_DAY
            here = len(parts) > 4 and parts[-4] == _host() and parts[-3].isdecimal()
            if old or (here and not _runs(int(parts[-3]))):
                file.unlink()


def _host() -> str:
    return socket.gethostname().replace(".", "-") or "localhost"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is there, and not ours
    with contextlib.suppress(OSError, IndexError):
        # Linux keeps a process that has ended until its parent asks for its status,
        # which in a container nobody may ever do.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return True
