"""What torch.save wrote is read without torch, and nothing in it is run."""

import copyreg
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lmjax.core.errors import UserError
from lmjax.data.reading import torch_archive
from lmjax.data.reading.torch_archive import TorchArchive

TWO_DOCUMENTS = Path(__file__).parent / "fixtures" / "two_documents.bin"


def _ids(path):
    archive = TorchArchive.open(path)
    documents = [[] for _ in archive.tensors]
    for document, position, ids in archive.read():
        assert ids.dtype == np.int64
        assert position == len(documents[document])
        documents[document] += ids.tolist()
    return documents


def _opcodes(kind="torch\nShortStorage", key="0", numbers=3, tensor=(0, (3,), (1,))):
    """The pickle of one tensor, in the protocol that is easiest to write by hand."""
    shape = pickle.dumps(tensor, 0)[:-1].decode("latin-1")
    return (
        "ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\n"
        f"c{kind}\nV{key}\nVcpu\nI{numbers}\ntQ"
        f"{{shape}}I00\nNtR"
    ).replace("{shape}", _flat(shape, tensor))


def _flat(_, tensor):
    offset, size, stride = tensor
    write = {
        tuple: lambda v: "(" + "".join(write[type(n)](n) for n in v) + "t",
        int: lambda v: f"I{v}\n",
        str: lambda v: f"V{v}\n",
    }
    return "".join(write[type(value)](value) for value in (offset, size, stride))


def _write(path, opcodes, data=b"\1\0\2\0\3\0", order=None, key="0", **zip_options):
    with zipfile.ZipFile(path, "w", **zip_options) as archive:
        program = opcodes if isinstance(opcodes, bytes) else opcodes.encode("latin-1")
        archive.writestr("archive/data.pkl", program)
        if order is not None:
            archive.writestr("archive/byteorder", order)
        if data is not None:
            archive.writestr(f"archive/data/{key}", data)
    return path


def _list(*tensors):
    return "(l" + "".join(f"{tensor}a" for tensor in tensors) + "."


def _error(path):
    with pytest.raises(UserError) as caught:
        _ids(path)
    assert str(path) in caught.value.where
    return caught.value


def test_the_committed_file_is_read():
    assert TorchArchive.open(TWO_DOCUMENTS).dtype == "<u2"
    assert _ids(TWO_DOCUMENTS) == [[5, 6, 7], [8, 40_000]]


def test_torch_reads_the_same():
    torch = pytest.importorskip("torch")
    tensors = torch.load(TWO_DOCUMENTS, weights_only=True)
    assert [(t.numpy().view(np.uint16)).tolist() for t in tensors] == _ids(
        TWO_DOCUMENTS
    )


@pytest.mark.parametrize(
    "name", ["int16", "int32", "int64", "uint8", "int8", "uint16", "uint32"]
)
def test_what_torch_writes_is_read(tmp_path, name):
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)
    documents = [[1, 2, 100], [], [7], list(range(100))]
    path = tmp_path / "x.bin"
    torch.save([torch.tensor(ids, dtype=dtype) for ids in documents], path)
    assert _ids(path) == documents
    torch.save(tuple(torch.tensor(ids, dtype=dtype) for ids in documents), path)
    assert _ids(path) == documents
    torch.save(torch.tensor([3, 4], dtype=dtype), path)
    assert _ids(path) == [[3, 4]]
    torch.save([], path)
    assert _ids(path) == []


def test_tensors_may_share_a_storage(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch_archive, "_BLOCK_IDS", 2)
    whole = torch.arange(10, dtype=torch.int32)
    other = torch.tensor([99], dtype=torch.int32)
    torch.save([whole[2:7], other, whole[0:3], whole[7:]], tmp_path / "x")
    assert _ids(tmp_path / "x") == [[2, 3, 4, 5, 6], [99], [0, 1, 2], [7, 8, 9]]


def test_int16_wraps_as_old_torch_made_it(tmp_path):
    path = _write(tmp_path / "x", _list(_opcodes()), b"\xff\xff\0\x80\1\0")
    assert _ids(path) == [[65_535, 32_768, 1]]


def test_the_byte_order_is_that_of_the_writer(tmp_path):
    for order, expected in ((b"little", 1), (b"big", 256), (None, 1)):
        path = _write(tmp_path / "x", _list(_opcodes()), order=order)
        assert _ids(path)[0][0] == expected
    path = _write(tmp_path / "x", _list(_opcodes()), order=b"\xff")
    assert "unknown byte order" in _error(path).what


@pytest.mark.parametrize(
    ("opcodes", "what"),
    [
        (_opcodes("torch\nFloatStorage"), "holds numbers of torch's FloatStorage"),
        (_opcodes("torch\nBoolStorage"), "holds numbers of torch's BoolStorage"),
        (_opcodes(tensor=(0, (3, 1), (1, 1))), "a tensor of 2 dimensions instead of 1"),
        (_opcodes(tensor=(0, (), ())), "a tensor of 0 dimensions instead of 1"),
        (_opcodes(tensor=(0, (2,), (2,))), "not contiguous"),
        (_opcodes(tensor=(1, (3,), (1,))), "goes beyond its storage"),
        (_opcodes(tensor=(-1, (3,), (1,))), "a shape that is no shape"),
        (_opcodes(tensor=("0", (3,), (1,))), "a shape that is no shape"),
        (_opcodes(tensor=(0, 3, (1,))), "a tensor without a shape"),
        (_opcodes(numbers=9, tensor=(0, (9,), (1,))), "lacks numbers of its tensors"),
        (_opcodes(key="7"), "lacks 'archive/data/7'"),
        (_opcodes(key="../data.pkl"), "lacks 'archive/data/../data.pkl'"),
        ("I3\n", "holds an object of type 'int' in its list"),
        (_opcodes() + "a" + _opcodes("torch\nIntStorage"), "mixes"),
    ],
)
def test_other_tensors_are_refused(tmp_path, opcodes, what):
    error = _error(_write(tmp_path / "x", _list(opcodes)))
    assert what in error.what
    assert "torch.save(" in error.remedy


@pytest.mark.parametrize("opcodes", ["I3\n.", "(d.", "N.", "Vtext\n."])
def test_something_else_than_a_list_is_refused(tmp_path, opcodes):
    error = _error(_write(tmp_path / "x", opcodes))
    assert "instead of a list of tensors" in error.what


def _malicious(file):
    """Programs that create a file, or try to, by each way a pickle has."""
    code = f"open({str(file)!r}, 'w').close()"
    touch = f"touch {file}"
    call = f"(V{touch}\n"

    class Reduced:
        def __reduce__(self):
            return exec, (code,)

    for protocol in range(6):
        yield pickle.dumps([Reduced()], protocol)
    yield f"cos\nsystem\n{call}tR.".encode()
    yield f"cposix\nsystem\n{call}tR.".encode()
    yield f"({call[1:]}ios\nsystem\n.".encode()  # INST
    yield f"(cos\nsystem\n{call[1:]}o.".encode()  # OBJ
    yield f"cos\nsystem\n{call}t\x81.".encode("latin-1")  # NEWOBJ
    yield b"\x80\x04\x8c\x02os\x8c\x06system\x93" + f"{call}tR.".encode()
    yield f"c__builtin__\neval\n(V{code}\ntR.".encode()
    yield b"ccollections\nOrderedDict.__init__\n."
    yield b"ctorch._utils\n_rebuild_tensor_v2.__call__.__globals__\n."
    yield b"ctorch\nload\n."
    yield b"cfunctools\npartial\n."


def _untyped(size, num_bytes):
    """A tensor as torch writes those of types that old versions did not know."""
    storage = f"(Vstorage\nctorch.storage\nUntypedStorage\nV0\nVcpu\nI{num_bytes}\ntQ"
    rest = f"I0\n(I{size}\nt(I1\ntI00\nNctorch\nuint16\n"
    return f"ctorch._utils\n_rebuild_tensor_v3\n({storage}{rest}tR"


def test_the_size_of_a_storage_without_a_type_is_in_bytes(tmp_path):
    assert _ids(_write(tmp_path / "x", _list(_untyped(3, 6)))) == [[1, 2, 3]]
    error = _error(_write(tmp_path / "x", _list(_untyped(4, 6))))
    assert "goes beyond its storage" in error.what


@pytest.mark.parametrize(
    "program",
    [
        b"Vsome id\nQ.",
        b"Psome id\n.",
        b"(Vmodule\nctorch\nIntStorage\nV0\nVcpu\nI6\ntQ.",
        b"(Vstorage\nV0\ntQ.",
    ],
)
def test_persistent_ids_are_those_of_storages(tmp_path, program):
    error = _error(_write(tmp_path / "x", program))
    assert "asks for something else than the numbers" in error.what


def test_malicious_pickles_are_refused_and_nothing_is_run(tmp_path):
    marker = tmp_path / "created"
    for program in _malicious(marker):
        error = _error(_write(tmp_path / "x", program))
        assert "asks for" in error.what or "instead of a list" in error.what, program
        assert not marker.exists()
    # Loaded by pickle itself they do create it: the programs are not broken.
    pickle.loads(next(_malicious(marker)))
    assert marker.exists()


def test_what_is_asked_for_is_named(tmp_path):
    program = pickle.dumps([os.system], 2)
    assert f"asks for {os.name}.system" in _error(_write(tmp_path / "x", program)).what


@pytest.mark.parametrize(
    "opcode", [b"\x82\xef", b"\x83\xef\xef", b"\x84\xef\xef\xef\0"]
)
def test_registered_extensions_are_refused_too(tmp_path, opcode):
    code = int.from_bytes(opcode[1:], "little")
    copyreg.add_extension("os", "system", code)
    try:
        error = _error(_write(tmp_path / "x", b"\x80\x02" + opcode + b"."))
    finally:
        copyreg.remove_extension("os", "system", code)
    assert "asks for os.system" in error.what


@pytest.mark.parametrize(
    "name", ["torch._utils\n_rebuild_tensor_v2", "torch\nIntStorage"]
)
@pytest.mark.parametrize(
    "state",
    ["(dVname\nVevil\ns", "N(dVname\nVevil\ns\x86", "(dV__class__\nVevil\ns", "(l"],
)
def test_a_pickle_can_not_change_what_it_is_given(tmp_path, name, state):
    before = dict(torch_archive._ADMITTED)
    program = f"\x80\x02c{name}\n{state}b.".encode("latin-1")
    assert "damaged list" in _error(_write(tmp_path / "x", program)).what
    assert before == torch_archive._ADMITTED
    assert torch_archive._DTYPES["IntStorage"] == "i4"


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"garbage",
        b"(l",
        b"\x80\x63.",
        b"X\xff\xff\xff\xffabc",
        b"ctorch\nIntStorage\n)R.",
        b"ctorch\nIntStorage\n)\x81.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.",
        b"ctorch._utils\n_rebuild_tensor_v3\n(I1\nI1\nI1\nI1\ntR.",
    ],
)
def test_a_broken_pickle_is_damage(tmp_path, program):
    assert "damaged list of tensors" in _error(_write(tmp_path / "x", program)).what


def test_damaged_archives_are_explained(tmp_path):
    data = TWO_DOCUMENTS.read_bytes()
    start = data.index(struct.pack("<3h", 5, 6, 7))
    for damaged in (
        data[: len(data) // 2],
        data[:-30],
        data[:start] + b"\x09" + data[start + 1 :],  # one number: the checksum says it
        b"PK\x03\x04",
    ):
        (tmp_path / "x").write_bytes(damaged)
        assert "damaged or incomplete" in _error(tmp_path / "x").what


def test_archives_that_are_not_torchs_are_refused(tmp_path):
    path = _write(tmp_path / "x", _list(_opcodes()), compression=zipfile.ZIP_DEFLATED)
    assert "compressed or encrypted" in _error(path).what
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("b/data.pkl", b"")
    assert "torch did not write" in _error(path).what
    assert "can't be read" in _error(tmp_path / "missing").what


def test_no_allowed_object_is_a_class():
    """So that NEWOBJ, OBJ and INST have nothing to make instances of."""
    for admitted in torch_archive._ADMITTED.values():
        assert not isinstance(admitted, type)
        assert isinstance(admitted, tuple)
        assert not hasattr(admitted, "__dict__")
        assert not hasattr(admitted, "__setstate__")
    unpickler = torch_archive._Unpickler(io.BytesIO(b""))
    with pytest.raises(torch_archive._Refused, match=r"builtins\.object"):
        unpickler.find_class("builtins", "object")
