"""Passwords and tokens in what is written: they are left out."""

import os
import re
from collections.abc import Mapping

HIDDEN = "***"
_WORDS = r"(?:token|secret|passw(?:or)?d|api_?key|access_?key|credential|signature)"
# No part may match at any length from any place: texts of megabytes come through here.
_NAMED = re.compile(rf"({_WORDS}\s{{0,3}}=\s{{0,3}})[^\s&'\",;]+", re.I)
_IN_ADDRESS = re.compile(r"(://)([^/?#\s@'\"]*)@")
# As Hugging Face, GitHub, OpenAI, Amazon and Slack make them.
_KNOWN = re.compile(
    r"\b(?:hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|sk-[\w-]{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abpr]-[\w-]{10,})"
)
_NAMES = re.compile(rf".*(?:{_WORDS}s?|_key|_pat)", re.I)
_NO_NAME = 20  # characters of what stands for a user, and is a token
_SHORTEST = 8  # characters of an environment variable that is a secret


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """A text without what only its owner should know.

    That is the password of an address (https://user:password@host), what stands behind
    a name such as token= in an address or an option, what looks like a token, and the
    values of environment variables with such names (HF_TOKEN, WANDB_API_KEY).

    Args:
      environment: by name; None takes that of the process.
    """
    text = _IN_ADDRESS.sub(_without_password, _KNOWN.sub(HIDDEN, text))
    if "://" in text or "--" in text:
        text = _NAMED.sub(rf"\1{HIDDEN}", text)
    environment = os.environ if environment is None else environment
    for name, value in environment.items():
        if len(value) >= _SHORTEST and _NAMES.fullmatch(name):
            text = text.replace(value, HIDDEN)
    return text


def _without_password(match: re.Match[str]) -> str:
    user, colon, _ = match[2].partition(":")
    if not colon and len(user) >= _NO_NAME:
        user = HIDDEN
    return f"{match[1]}{user}{f':{HIDDEN}' if colon else ''}@"
