"""Nothing that a user loads is executed, leads out of its folder, or tells a secret."""

import ast
import gzip
import io
import json
import lzma
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax import experiment, modes
from lmjax.config import serialize
from lmjax.config.schema import (
    AutoregressiveConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    LogConfig,
    MLPKind,
    ModelConfig,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
)
from lmjax.core.errors import UserError
from lmjax.data.preparation.manifest import load_prepared
from lmjax.data.reading.files import open_bytes
from lmjax.data.reading.torch_archive import TorchArchive
from lmjax.evaluate.zero_shot.readers import load_tasks
from lmjax.export import weights

pytestmark = pytest.mark.usefixtures("one_device")

PACKAGE = Path(__file__).resolve().parents[2] / "lmjax"
TEXT = "\n\n".join(f"This is line {i} of a text." for i in range(60))
SECRETS = ("pw-in-an-address", "pw-in-an-option", "value-of-a-variable")

# Calls that run, or may run, what a file holds.
_FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "yaml.unsafe_load",
    "torch.load",
    "joblib.load",
    "shutil.unpack_archive",
}
_FORBIDDEN_METHODS = {"extractall", "exec_module", "load_module"}
_FORBIDDEN_VALUES = {
    "shell": True,
    "trust_remote_code": True,
    "allow_pickle": True,
    "weights_only": False,
}
# A config is Python by the field's convention, and the user's own; what the workers of
# a Beam pipeline found comes back through a folder that was made for this alone.
_ALLOWED = {
    ("config/load.py", "exec_module"),
    ("data/preparation/beam.py", "pickle.loads"),
}


def _dangers(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        method = getattr(node.func, "attr", "")
        if name in _FORBIDDEN:
            yield name
        elif method in _FORBIDDEN_METHODS:
            yield method
        for keyword in node.keywords:
            value = getattr(keyword.value, "value", None)
            name = keyword.arg or ""
            if name in _FORBIDDEN_VALUES and _FORBIDDEN_VALUES[name] is value:
                yield f"{name}={value}"


def test_nothing_in_the_package_executes_what_a_user_loads() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), danger)
        for path in PACKAGE.rglob("*.py")
        for danger in _dangers(path.read_text(encoding="utf-8"))
    }
    assert found == _ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "import pickle\npickle.load(file)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "Auto.from_pretrained(x, trust_remote_code=True)",
        "archive.extractall(folder)",
        "yaml.load(text)",
    ],
)
def test_a_dangerous_call_is_seen(source: str) -> None:
    assert list(_dangers(source))
    assert not list(_dangers("ast.literal_eval(x)\nnumpy.load(x, allow_pickle=False)"))


class _Planted:
    """Leaves a file behind where it is unpickled as usual."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_a_pickle_in_a_torch_file_is_not_run(tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "a.bin"
    program = pickle.dumps([_Planted(mark)])
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", program)
    with pytest.raises(UserError, match="does not need"):
        TorchArchive.open(file)
    assert not mark.exists()
    pickle.loads(program)  # it would have been
    assert mark.exists()


def test_a_torch_file_gets_no_more_memory_than_it_fills(tmp_path: Path) -> None:
    """An index of a memoised object, of which there are two thousand million."""
    file = tmp_path / "a.bin"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02]r\xff\xff\xff\x7f.")
    assert TorchArchive.open(file).tensors == ()


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A prepared folder, with a shard beside it that is none of its own."""
    text = tmp_path / "a.txt"
    text.write_text(TEXT)
    config = Config(
        tokenizer=TokenizerConfig(kind=TokenizerKind.BYTES),
        data=DataConfig(
            train=(str(text),),
            sequence_length=16,
            valid_fraction=0.2,
            cache_dir=str(tmp_path / "cache"),
        ),
    )
    folder = experiment.prepare_corpus(config).folder
    shard = next(folder.glob("train*.array_record"))
    shutil.copy(shard, folder.parent / "outside.array_record")
    return folder


@pytest.mark.parametrize(
    "name",
    ["../outside.array_record", "{parent}/outside.array_record", "..", "", "a/../b", 3],
)
def test_a_manifest_does_not_lead_out_of_its_folder(prepared: Path, name: Any) -> None:
    file = prepared / "manifest.json"
    manifest = json.loads(file.read_text())
    shard = manifest["splits"]["train"][0]["shards"][0]
    if isinstance(name, str):
        name = name.format(parent=prepared.parent)
    shard["file"] = name
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError) as caught:
        load_prepared(prepared)
    assert "damaged" in caught.value.what and caught.value.where and caught.value.remedy


@pytest.mark.parametrize("name", ["../b.safetensors", "{parent}/b.safetensors", ".."])
def test_an_index_of_weights_does_not_lead_out_of_its_folder(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = {"w": np.zeros(3, np.float32)}
    library = pytest.importorskip("safetensors.numpy")
    library.save_file(tensors, tmp_path / "b.safetensors")
    index = {"weight_map": {"w": name.format(parent=tmp_path)}}
    (folder / weights.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="no file of its folder"):
        weights.WeightFiles(folder)


def _archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w:xz", preset=0) as archive:
        for member, content in members:
            member.size = member.size or len(content)
            archive.addfile(member, io.BytesIO(content))


def test_an_archive_of_items_is_read_and_never_unpacked(tmp_path: Path) -> None:
    row = {"sentence_good": "a", "sentence_bad": "b"}
    outside = tarfile.TarInfo("../../outside.jsonl")
    link = tarfile.TarInfo("link.jsonl")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    content = json.dumps(row).encode()
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    _archive(folder / "supplement_fast.tar.xz", (outside, content), (link, b""))
    (task,) = load_tasks(["supplement_fast"], str(folder))
    assert len(task.items) == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [folder / "supplement_fast.tar.xz"]


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """It says how large it is before anything is made of it."""
    path = tmp_path / "supplement_fast.tar.xz"
    content = tarfile.TarInfo("a.jsonl")
    content.size = 10**12
    path.write_bytes(lzma.compress(content.tobuf() + bytes(1024)))
    with pytest.raises(UserError, match="more than") as caught:
        load_tasks(["supplement_fast"], str(tmp_path))
    assert caught.value.remedy


def test_a_compressed_text_that_is_a_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmjax.data.reading.files._BOMB_BYTES", 100_000)
    (tmp_path / "bomb").write_bytes(gzip.compress(b"a" * 3_000_000))
    (tmp_path / "text").write_bytes(gzip.compress(bytes(range(256)) * 2000))
    with (
        open_bytes(tmp_path / "bomb") as bomb,
        pytest.raises(UserError, match="unpacks to more") as caught,
    ):
        bomb.read()
    assert caught.value.where and caught.value.remedy
    with open_bytes(tmp_path / "text") as text:
        assert len(text.read()) == 512_000


def _with_secrets(corpus: Path) -> Config:
    """A run that is given passwords at every place that takes an address or a name."""
    address = f"https://user:{SECRETS[0]}@host/a"
    return Config(
        tokenizer=TokenizerConfig(kind=TokenizerKind.BYTES),
        data=DataConfig(
            train=(str(corpus),),
            sequence_length=16,
            valid_fraction=0.2,
            cache_dir=str(corpus.parent / "cache"),
        ),
        model=ModelConfig(
            num_layers=1,
            width=16,
            num_heads=2,
            mlp=MLPKind.SWIGLU,
            mlp_width=16,
            max_length=32,
        ),
        objective=AutoregressiveConfig(),
        train=TrainConfig(budget="2 steps", batch_size=8),
        checkpoint=CheckpointConfig(every="1 steps"),
        evaluate=EvaluateConfig(every="1 steps", batches=1, data=address),
        generate=GenerateConfig(every="0", prompt_file=address, output=SECRETS[2]),
        export=ExportConfig(hub_repo=f"user/{SECRETS[2]}"),
        log=LogConfig(every="1 steps", wandb_project=SECRETS[2]),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, and an export in it."""
    folder = tmp_path_factory.mktemp("secrets")
    corpus = folder / "a.txt"
    corpus.write_text(TEXT)
    config = _with_secrets(corpus)
    experiment.prepare_corpus(config)
    # As of a pipeline that prepared it; it is found in the cache.
    config.data.beam = (
        "--runner=FlinkRunner",
        f"--flink_master=https://user:{SECRETS[0]}@host:8081",
        f"--s3_secret_access_key={SECRETS[1]}",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRETS[2])
        modes.train(config, folder / "run")
        modes.export(config, folder / "run")
    return folder / "run"


def test_no_secret_is_written_into_a_run_folder_or_an_export(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.json", "log.txt", "metrics.jsonl", "README.md"} <= names
    for path in files:
        content = path.read_bytes()
        for secret in SECRETS:
            assert secret.encode() not in content, path
            assert secret not in path.name
    # They would have been there.
    beam = json.loads((run / "config.json").read_text())["data"]["beam"]
    assert beam[1:] == [
        "--flink_master=https://user:***@host:8081",
        "--s3_secret_access_key=***",
    ]


def test_a_config_without_its_secrets_is_still_one(run: Path) -> None:
    config = serialize.load(run / "config.json")
    assert config.evaluate.data == "https://user:***@host/a"
    assert config.model.width == 16


def test_a_torch_file_is_not_believed_how_large_its_parts_are(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02].")
    content = file.read_bytes()
    at = content.index(b"PK\x01\x02") + 20  # both sizes, in the directory
    lie = (2**31).to_bytes(4, "little") * 2
    file.write_bytes(content[:at] + lie + content[at + 8 :])
    with pytest.raises(UserError, match="larger than all of the file"):
        TorchArchive.open(file)
