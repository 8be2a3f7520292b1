"""Commands that tests start in processes of their own."""

import os
import re


def environment(num_devices: int = 1) -> dict[str, str]:
    """That of the tests with another number of devices, one of which is quickest.

    Bytecode is kept: a start that compiles all it imports takes twice as long.
    """
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    count = rf"\1={num_devices}"
    return kept | {"XLA_FLAGS": re.sub(r"(device_count)=\d+", count, kept["XLA_FLAGS"])}
