"""JSON that may come from anywhere: what it holds, or a ValueError, whatever it is."""

import json
from typing import Any

_DEEPEST = 100  # so that nobody who goes through a value by recursion runs out of stack


def parse(data: bytes | str) -> Any:
    """Reads JSON as `json.loads` does; bytes are UTF-8.

    Raises:
      ValueError: it is no JSON, no Unicode, or nested too deeply; says which.
    """
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count("[") + text.count("{") > _DEEPEST and _depth(value) > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if "\\ud" in text.lower():  # half a pair is no character, and can't be written
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _depth(value: Any) -> int:
    """How deep lists and dictionaries stand in each other; counts no further than it
    must."""
    level, depth = [value], 0
    while depth <= _DEEPEST:
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        depth += 1
        if not level:
            break
    return depth
