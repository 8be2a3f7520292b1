"""The house rules that a machine can check: who imports whom, where jit and flags live.

`ORDER` is that of the house: a room may import what stands further down, never what
stands above it or on its own line.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lmjax"
ORDER = (
    "main",
    "modes",
    "footprint",
    "plan report starting_weights",
    "run_folder training_run",
    "experiment",
    "assembly",
    "train evaluate export doctor",
    "objectives sampling optim",
    "models diffusion data",
    "parallel",
    "config",
    "core",
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms.split()}
# The one batch type and nothing else of the data room: the loop is handed the rest.
TRAIN_MAY_NOT_IMPORT = ("lmjax.models", "lmjax.evaluate", "lmjax.data.")
TRAIN_MAY_IMPORT = ("lmjax.data.batch",)
JIT = (
    "train/state.py",
    "train/step.py",
    "evaluate/likelihood.py",
    "evaluate/probes.py",
    "doctor/flops.py",
    "doctor/attention_check.py",
)
FLAGS = ("absl.flags", "absl.app", "ml_collections", "argparse")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 420, 90

Files = dict[str, str]  # path inside the package -> source


@pytest.fixture(scope="module")
def files() -> Files:
    # Templates are no modules of the package: one is a whole that exports carry.
    return {
        path.relative_to(PACKAGE).as_posix(): path.read_text()
        for path in sorted(PACKAGE.rglob("*.py"))
        if "templates" not in path.parts
    }


def _room(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def _imports(source: str) -> Iterator[str]:
    """Every module a file imports, also inside functions; names as modules too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _wrong_imports(files: Files) -> list[str]:
    wrong = []
    for path, source in files.items():
        room = _room(path)
        for module in _imports(source):
            parts = module.split(".")
            if parts[0] != "lmjax" or parts[1] == room:
                continue
            if RANK.get(parts[1], -1) <= RANK[room]:
                wrong.append(f"{path} imports {module}")
    return wrong


def _handed_in(files: Files) -> list[str]:
    """What files of `train` import though it should be handed to them."""
    return [
        f"{path} imports {module}"
        for path, source in files.items()
        if _room(path) == "train"
        for module in _imports(source)
        if f"{module}.".startswith(TRAIN_MAY_NOT_IMPORT)
        and not module.startswith(TRAIN_MAY_IMPORT)
    ]


def _uses(files: Files, modules: tuple[str, ...], allowed: tuple[str, ...]) -> set[str]:
    return {
        path
        for path, source in files.items()
        if not path.startswith(allowed)
        for module in _imports(source)
        if f"{module}.".startswith(tuple(f"{name}." for name in modules))
    }


def _compiles(files: Files) -> set[str]:
    """Files that jit where it is not allowed; nnx.jit and pmap are allowed nowhere."""
    found = set()
    for path, source in files.items():
        for node in ast.walk(ast.parse(source)):
            holder = getattr(getattr(node, "value", None), "id", "")
            name = getattr(node, "attr", "")
            names = [
                alias.name
                for alias in getattr(node, "names", [])
                if isinstance(alias, ast.alias)
            ]
            if holder == "jax" and name == "jit":
                if not path.startswith(("sampling/", *JIT)):
                    found.add(path)
            elif name in ("jit", "pjit", "pmap") or {"jit", "pmap"}.intersection(names):
                found.add(path)
    return found


def _catches_everything(source: str) -> list[int]:
    """Lines of handlers that would swallow any error."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            kinds = ast.walk(node.type) if node.type else ()
            names = {getattr(kind, "id", "") for kind in kinds}
            if node.type is None or names & {"Exception", "BaseException"}:
                lines.append(node.lineno)
    return lines


def test_rooms_import_only_what_stands_to_their_right(files: Files) -> None:
    files = {path: text for path, text in files.items() if path != "__init__.py"}
    unknown = {_room(path) for path in files} - set(RANK)
    assert not unknown, f"give {unknown} a place in the order"
    assert not _wrong_imports(files)


def test_the_loop_is_handed_models_pipelines_and_evaluators(files: Files) -> None:
    assert not _handed_in(files)


def test_flags_are_in_main_alone(files: Files) -> None:
    assert not _uses(files, FLAGS, allowed=("main.py",))


def test_jit_is_where_the_style_allows_it(files: Files) -> None:
    assert not _compiles(files)


def test_config_needs_no_jax(files: Files) -> None:
    """Nor does anything that it imports."""
    pending = {path for path in files if _room(path) == "config"}
    seen: set[str] = set()
    while pending:
        path = pending.pop()
        seen.add(path)
        for module in _imports(files[path]):
            parts = module.split(".")
            assert parts[0] == "lmjax" or parts[0] in sys.stdlib_module_names, path
            inner = {"/".join(parts[1:i]) + ".py" for i in (3, 4)} & set(files)
            pending |= inner - seen
    assert "core/errors.py" in seen


def test_files_and_functions_can_be_read_at_a_sitting(files: Files) -> None:
    for path, source in files.items():
        assert source.count("\n") <= MAX_FILE_LINES, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= MAX_FUNCTION_LINES, f"{path}: {node.name}"


def test_no_file_is_named_after_nothing(files: Files) -> None:
    for path in files:
        assert not {"utils", "util", "common", "helpers", "misc"} & set(
            path.removesuffix(".py").replace("_", "/").split("/")
        ), path


def test_no_error_is_swallowed_whatever_it_is(files: Files) -> None:
    found = {path: _catches_everything(source) for path, source in files.items()}
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("path", "source", "check"),
    [
        ("core/trees.py", "from lmjax.config import schema", _wrong_imports),
        ("models/dit.py", "def f():\n import lmjax.data.batch", _wrong_imports),
        ("plan.py", "from lmjax import report", _wrong_imports),
        ("experiment.py", "from lmjax.modes import train", _wrong_imports),
        ("train/loop.py", "from lmjax.data import pipeline", _handed_in),
        ("train/loop.py", "from lmjax.models.build import Model", _handed_in),
        ("train/loop.py", "import jax\nf = jax.jit(g)", _compiles),
        ("train/step.py", "from flax import nnx\nf = nnx.jit(g)", _compiles),
        ("models/mlp.py", "from jax import jit", _compiles),
    ],
)
def test_a_breach_is_seen(path: str, source: str, check) -> None:
    assert check({path: source})
    assert not check({path: "import jax\nfrom lmjax.core import errors"})


@pytest.mark.parametrize("kinds", ["", " Exception", " (ValueError, BaseException)"])
def test_a_swallowed_error_is_seen(kinds: str) -> None:
    assert _catches_everything(f"try:\n a\nexcept{kinds}:\n pass")
    assert not _catches_everything("try:\n a\nexcept (OSError, ValueError):\n pass")
