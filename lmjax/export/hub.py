"""Exports on the Hugging Face hub: one repository, a branch for each milestone."""

import dataclasses
import hashlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from absl import logging

from lmjax.core.errors import UserError
from lmjax.core.extras import require

MAIN = "main"
_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
# Weights in a number of files: those of an earlier upload must not stay beside them.
_REPLACED = ("*.safetensors", "*.safetensors.index.json")
_CHUNK = 2**24  # bytes that are hashed at once


@dataclasses.dataclass(frozen=True)
class Revision:
    """One exported folder, and the branch that it goes to; "main" is the final one."""

    branch: str
    folder: Path

    @property
    def files(self) -> dict[str, Path]:
        """All of its files by their names in the repository, in order."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        named = {path.relative_to(self.folder).as_posix(): path for path in found}
        return {
            name: named[name]
            for name in sorted(named)
            if not any(part.startswith(".") for part in name.split("/"))
        }


class HubApi(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    def whoami(self) -> dict[str, Any]: ...

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any: ...

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> Any: ...

    def list_repo_tree(
        self, repo_id: str, *, revision: str, recursive: bool
    ) -> Sequence[Any]: ...

    def upload_folder(self, **options: Any) -> Any: ...


def describe(repo: str, revisions: Sequence[Revision]) -> list[str]:
    """Says what `push` would do, a line for each revision; needs no network.

    Raises:
      UserError: a folder is no whole export, or a branch is named twice.
    """
    _check(revisions)
    lines = [f"repository {repo} on the Hugging Face hub, made if it is not there"]
    for revision in _in_order(revisions):
        files = revision.files
        size = sum(path.stat().st_size for path in files.values())
        lines.append(
            f"{revision.branch}: {len(files)} files, {size / 1e6:,.1f} MB, from "
            f"{revision.folder}"
        )
    return lines


def push(
    repo: str,
    revisions: Sequence[Revision],
    *,
    private: bool = False,
    api: HubApi | None = None,
) -> list[str]:
    """Uploads folders to the branches of one repository, what is not there yet.

    The final one, "main", comes last. Who is interrupted calls it again: branches that
    hold the same files are left as they are.

    Args:
      repo: owner/name.
      private: of a repository that is made now.
      api: that of the hub, as whoever is logged in; None makes it.

    Returns:
      The branches that were written to, in order.

    Raises:
      UserError: nobody is logged in, the hub can't be reached or refuses, or a folder
        is no whole export.
    """
    _check(revisions)
    written = []
    with _Explained(repo):
        hub = api or require("huggingface_hub", extra="hf", what="export.push").HfApi()
        hub.whoami()  # a missing login is told before anything is made
        hub.create_repo(repo, private=private, exist_ok=True)
        for revision in _in_order(revisions):
            if revision.branch != MAIN:
                hub.create_branch(repo, branch=revision.branch, exist_ok=True)
            if _is_there(hub, repo, revision):
                logging.info("%s, %s: is there already", repo, revision.branch)
                continue
            logging.info("%s, %s: uploading", repo, revision.branch)
            hub.upload_folder(
                repo_id=repo,
                folder_path=str(revision.folder),
                revision=revision.branch,
                commit_message=f"{revision.branch}, exported by lmjax",
                ignore_patterns=[".*", "**/.*"],
                delete_patterns=list(_REPLACED),
            )
            written.append(revision.branch)
    return written


def _in_order(revisions: Sequence[Revision]) -> list[Revision]:
    """The final one last: where it is, all are."""
    return sorted(revisions, key=lambda revision: revision.branch == MAIN)


def _check(revisions: Sequence[Revision]) -> None:
    branches = [revision.branch for revision in revisions]
    twice = {branch for branch in branches if branches.count(branch) > 1}
    if twice:
        raise UserError(
            f"two folders would go to the branch {min(twice)}",
            where="export.push",
            remedy="export each checkpoint once",
        )
    for revision in revisions:
        names = revision.files
        missing = [name for name in _NEEDED if name not in names]
        if not any(name.endswith(".safetensors") for name in names):
            missing.append("model.safetensors")
        if missing:
            raise UserError(
                f"the folder is no whole export: it has no {missing[0]}",
                where=str(revision.folder),
                remedy="export it again: --mode export --config.export.overwrite=true",
            )


def _is_there(hub: HubApi, repo: str, revision: Revision) -> bool:
    """Whether the branch holds all files of the folder, and no other weights."""
    entries = hub.list_repo_tree(repo, revision=revision.branch, recursive=True)
    there = {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}
    files = revision.files
    weights = {name for name in there if name.endswith(".safetensors")}
    return weights <= files.keys() and all(
        name in there and _is_same(path, there[name]) for name, path in files.items()
    )


def _is_same(path: Path, entry: Any) -> bool:
    """Whether a file is what the hub has: by the hash that the hub tells of it."""
    size = path.stat().st_size
    if entry.size != size:
        return False
    large = getattr(entry, "lfs", None)
    if large is not None:
        return _digest(path, hashlib.sha256()) == large.sha256
    return _digest(path, hashlib.sha1(f"blob {size}\0".encode())) == entry.blob_id


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        for chunk in _chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


class _Explained:
    """Explains what the hub's library raises to users."""

    def __init__(self, repo: str):
        self._repo = repo

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, UserError):
            return
        errors = importlib.import_module("huggingface_hub.errors")
        # The base of its errors is that of whatever library carries them.
        if isinstance(error, (errors.HfHubHTTPError.__mro__[1], OSError, ValueError)):
            raise _explain(error, errors, self._repo) from error


def _explain(error: BaseException, errors: Any, repo: str) -> UserError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        what = "nobody is logged in to the Hugging Face hub, or the token is not valid"
        remedy = (
            "make a token that may write on huggingface.co/settings/tokens, then "
            "`hf auth login`, or set HF_TOKEN"
        )
    elif status in (403, 404):
        what = f"the hub does not let this user write there: {first_line}"
        remedy = (
            "take a repository of your own or of an organisation that you may write "
            "to, --config.export.hub_repo=OWNER/NAME, and a token with the right to "
            "write"
        )
    elif isinstance(error, errors.HFValidationError):
        what, remedy = first_line, "write --config.export.hub_repo=OWNER/NAME"
    elif status is not None:
        what = f"the hub refuses: {first_line}"
        remedy = "run the same command again; it goes on where it stopped"
    else:
        what = f"the Hugging Face hub can't be reached: {first_line}"
        remedy = (
            "check the network and HF_HUB_OFFLINE, and run the same command again: it "
            "goes on where it stopped; --config.export.push=dry_run needs no network"
        )
    return UserError(what, where=f"export.hub_repo={repo}", remedy=remedy)
