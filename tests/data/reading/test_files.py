"""Files are unpacked by content, and damage is explained."""

import gzip
import hashlib
import tracemalloc

import pytest
import zstandard

from lmjax.core.errors import UserError
from lmjax.data.reading import files

TEXT = b"one two\nthree\n" * 1000
ZSTD = zstandard.ZstdCompressor().compress(TEXT)
GZIP = gzip.compress(TEXT, mtime=0)  # the same in every process of a test run
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"


def _read(path, content):
    path.write_bytes(content)
    with files.open_bytes(path) as handle:
        return handle.read()


@pytest.mark.parametrize(
    ("content", "expected", "kind"),
    [
        (b"", b"", ""),
        (b"\x1f", b"\x1f", ""),
        (TEXT, TEXT, ""),
        (GZIP, TEXT, "gzip"),
        (GZIP + GZIP, TEXT + TEXT, "gzip"),
        (gzip.compress(b"", mtime=0), b"", "gzip"),
        (ZSTD, TEXT, "zstd"),
        (ZSTD + ZSTD, TEXT + TEXT, "zstd"),
        (SKIPPABLE + ZSTD, TEXT, "zstd"),
        (zstandard.ZstdCompressor().compress(b""), b"", "zstd"),
    ],
)
def test_files_are_unpacked_whatever_their_name(tmp_path, content, expected, kind):
    path = tmp_path / "named.txt"
    assert _read(path, content) == expected
    assert files.compression(path) == kind


def test_lines_are_read_one_by_one(tmp_path):
    (tmp_path / "x").write_bytes(ZSTD)
    with files.open_bytes(tmp_path / "x") as handle:
        assert handle.readline() == b"one two\n"
        assert handle.read(3) == b"thr"
        assert next(handle) == b"ee\n"


@pytest.mark.parametrize(
    "content",
    [
        GZIP[:-10],
        GZIP[:20],
        GZIP[:30] + b"\x00\xff" + GZIP[32:],
        GZIP + b"garbage",
        ZSTD[:-3],
        ZSTD[:5],
        ZSTD + ZSTD[:8],
        ZSTD + b"garbage",
        ZSTD[:8] + b"\xff\xff\xff" + ZSTD[11:],
    ],
)
def test_damage_is_explained(tmp_path, content):
    with pytest.raises(UserError, match="damaged or incomplete") as caught:
        _read(tmp_path / "x", content)
    assert caught.value.where == str(tmp_path / "x")
    assert "again" in caught.value.remedy


def test_little_is_unpacked_at_a_time(tmp_path):
    """Zeros are packed so well that a whole file could come out of one read."""
    for compress in (gzip.compress, zstandard.ZstdCompressor().compress):
        (tmp_path / "x").write_bytes(compress(bytes(60_000_000)))
        with files.open_bytes(tmp_path / "x") as handle:
            tracemalloc.start()
            size = sum(len(part) for part in iter(lambda: handle.read(10_000), b""))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert size == 60_000_000
            assert peak < 40_000_000


@pytest.mark.parametrize("name", ["missing", "."])
@pytest.mark.parametrize(
    "function", [files.open_bytes, files.compression, files.hash_file]
)
def test_an_unreadable_file_is_explained(tmp_path, name, function):
    with pytest.raises(UserError, match="can't be read") as caught:
        function(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)
    assert "permissions" in caught.value.remedy


def test_the_hash_is_of_the_file_on_disk(tmp_path):
    (tmp_path / "x").write_bytes(GZIP)
    assert files.hash_file(tmp_path / "x") == hashlib.sha256(GZIP).hexdigest()


def test_suffixes_of_compression_are_taken_off():
    names = [files.without_compressed_suffix(n) for n in ("a.txt.gz", "b.zst", "gz")]
    assert names == ["a.txt", "b", "gz"]
