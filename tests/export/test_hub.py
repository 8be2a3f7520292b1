"""Pushing exports, against a hub in memory."""

import hashlib
import types
from pathlib import Path
from typing import Any

import pytest

from lmjax.core.errors import UserError
from lmjax.export import hub
from lmjax.export.hub import Revision, describe, push

errors = pytest.importorskip("huggingface_hub.errors")
REPO = "someone/model"


class Hub:
    """What a hub keeps: files of each branch, and how often it was written to."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, bytes]] = {}
        self.uploads: list[str] = []
        self.fails_at: str | None = None

    def whoami(self) -> dict[str, Any]:
        return {"name": "someone"}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert repo_id == REPO and exist_ok
        self.private = private
        self.branches.setdefault("main", {".gitattributes": b"*"})

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        assert repo_id == REPO and exist_ok
        self.branches.setdefault(branch, dict(self.branches["main"]))

    def list_repo_tree(
        self, repo_id: str, *, revision: str, recursive: bool
    ) -> list[Any]:
        assert recursive
        folders = [types.SimpleNamespace(path="folder", tree_id="x")]
        return folders + [
            _entry(name, content) for name, content in self.branches[revision].items()
        ]

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: str,
        revision: str,
        commit_message: str,
        ignore_patterns: list[str],
        delete_patterns: list[str],
    ) -> None:
        if revision == self.fails_at:
            raise ConnectionError("the line is dead")
        assert revision in commit_message and ".*" in ignore_patterns
        kept = self.branches[revision].items()
        there = {n: c for n, c in kept if not n.endswith(".safetensors")}
        assert "*.safetensors" in delete_patterns
        files = Path(folder_path).iterdir()
        self.branches[revision] = there | {f.name: f.read_bytes() for f in files}
        self.uploads.append(revision)


def _entry(name: str, content: bytes) -> types.SimpleNamespace:
    """As the hub tells of a file: large ones have a hash of their own."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    lfs = None
    if name.endswith(".safetensors"):
        lfs = types.SimpleNamespace(sha256=hashlib.sha256(content).hexdigest())
        blob = "of the pointer"
    return types.SimpleNamespace(path=name, size=len(content), blob_id=blob, lfs=lfs)


def _export(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(f"{name} of {folder.name}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def revisions(tmp_path: Path) -> list[Revision]:
    return [
        Revision("main", _export(tmp_path / "final", b"final")),
        Revision("chck_1M", _export(tmp_path / "one", b"one")),
        Revision("chck_2M", _export(tmp_path / "two", b"two")),
    ]


def test_each_folder_goes_to_its_branch_and_the_final_one_last(
    revisions: list[Revision],
) -> None:
    there = Hub()
    assert push(REPO, revisions, api=there, private=True) == there.uploads
    assert there.uploads == ["chck_1M", "chck_2M", "main"]
    assert there.private
    for revision in revisions:
        files = {n: path.read_bytes() for n, path in revision.files.items()}
        found = there.branches[revision.branch]
        assert {name: found[name] for name in files} == files


def test_a_second_push_writes_only_what_has_changed(revisions: list[Revision]) -> None:
    there = Hub()
    push(REPO, revisions, api=there)
    there.uploads.clear()
    assert push(REPO, revisions, api=there) == []
    (revisions[1].folder / "model.safetensors").write_bytes(b"eno")
    assert push(REPO, revisions, api=there) == ["chck_1M"]
    (revisions[2].folder / "config.json").write_text("config.json of owt")
    assert push(REPO, revisions, api=there) == ["chck_2M"]
    there.branches["main"]["model-00001-of-00002.safetensors"] = b"stale"
    assert push(REPO, revisions, api=there) == ["main"]
    assert "model-00001-of-00002.safetensors" not in there.branches["main"]


def test_an_interrupted_push_goes_on_where_it_stopped(
    revisions: list[Revision],
) -> None:
    there = Hub()
    there.fails_at = "chck_2M"
    with pytest.raises(UserError, match=r"can't be reached: the line is dead"):
        push(REPO, revisions, api=there)
    assert there.uploads == ["chck_1M"]
    there.fails_at = None
    assert push(REPO, revisions, api=there) == ["chck_2M", "main"]


def test_a_dry_run_says_what_would_be_done_and_asks_nobody(
    revisions: list[Revision], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "require", None)
    first, *lines = describe(REPO, revisions)
    assert REPO in first
    assert [line.split(":")[0] for line in lines] == ["chck_1M", "chck_2M", "main"]
    assert all("4 files" in line for line in lines)


@pytest.mark.parametrize(
    "missing", ["config.json", "tokenizer.json", "model.safetensors"]
)
def test_a_folder_that_is_no_whole_export_is_not_pushed(
    revisions: list[Revision], missing: str
) -> None:
    (revisions[1].folder / missing).unlink()
    there = Hub()
    for action in (describe, push):
        with pytest.raises(UserError, match=f"has no {missing}"):
            action(REPO, revisions, **({"api": there} if action is push else {}))
    assert not there.branches
    with pytest.raises(UserError, match="branch main"):
        describe(REPO, [revisions[0], revisions[0]])


def _http_error(status: int) -> Exception:
    error = errors.HfHubHTTPError.__new__(errors.HfHubHTTPError)
    Exception.__init__(error, f"status {status}\nand a page of HTML")
    error.response = types.SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ("error", "told", "remedy"),
    [
        (
            errors.LocalTokenNotFoundError("none"),
            "nobody is logged in",
            "hf auth login",
        ),
        (_http_error(401), "the token is not valid", "hf auth login"),
        (_http_error(403), "does not let this user write", "hub_repo=OWNER/NAME"),
        (_http_error(500), "the hub refuses: status 500$", "goes on where it stopped"),
        (errors.OfflineModeIsEnabled("offline"), "can't be reached", "HF_HUB_OFFLINE"),
        (errors.HFValidationError("bad name"), "bad name", "OWNER/NAME"),
        (
            errors.HfHubHTTPError.__mro__[1]("no route"),
            "can't be reached: no route",
            "",
        ),
    ],
)
def test_what_goes_wrong_is_told_with_what_to_do(
    revisions: list[Revision], error: Exception, told: str, remedy: str
) -> None:
    there = Hub()

    def refuse() -> dict[str, Any]:
        raise error

    there.whoami = refuse
    with pytest.raises(UserError) as caught:
        push(REPO, revisions, api=there)
    assert not there.branches
    assert told.rstrip("$") in caught.value.what
    assert not told.endswith("$") or caught.value.what.endswith(told.rstrip("$"))
    assert remedy in caught.value.remedy
    assert REPO in caught.value.where


def test_a_mistake_of_ours_is_not_explained_away(revisions: list[Revision]) -> None:
    there = Hub()
    there.create_repo = None
    with pytest.raises(TypeError):
        push(REPO, revisions, api=there)


def test_hidden_files_stay_at_home(revisions: list[Revision]) -> None:
    (revisions[0].folder / ".cache").mkdir()
    (revisions[0].folder / ".cache" / "note").write_text("private")
    assert sorted(revisions[0].files) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_library_has_what_is_asked_of_it() -> None:
    import inspect

    from huggingface_hub import HfApi

    for name in ("create_repo", "create_branch", "list_repo_tree", "upload_folder"):
        wanted = inspect.signature(getattr(Hub, name)).parameters
        assert (
            wanted.keys() <= inspect.signature(getattr(HfApi, name)).parameters.keys()
        )
