"""Where the files of BabyLM's evaluation data are."""

from collections.abc import Sequence
from pathlib import Path

from lmjax.core.errors import ConfigError
from lmjax.evaluate.zero_shot.readers import PLACES


def find_file(task: str, folder: str, parents: Sequence[str], name: str) -> Path:
    """The file of a task below the folder of the config.

    Args:
      parents: folders that may hold it, such as "reading"; the folder itself may, too.

    Raises:
      ConfigError: it is in none of them.
    """
    top = Path(folder).expanduser()
    for place in PLACES:
        for parent in ("", *parents):
            path = top / place / parent / name
            if path.is_file():
                return path
    raise ConfigError(
        f"The data of the task {task!r} are not there.",
        where=f"evaluate.data={folder!r}, of which {name} was tried, in it and in "
        f"{', '.join([*parents, *filter(None, PLACES)])}",
        remedy="set --config.evaluate.data to the folder that holds it: it comes with "
        "BabyLM's evaluation data.",
    )
