"""Documents hold every word of their file, and errors say where to look."""

import gzip
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config.schema import DocumentUnit
from lmjax.core.errors import UserError
from lmjax.data.reading import documents, text_reader
from lmjax.data.reading.documents import Document
from lmjax.data.reading.text_reader import TextReader, choose_unit

REPEATABLE = settings(derandomize=True, deadline=None)
UNITS = [unit for unit in DocumentUnit if unit is not DocumentUnit.AUTO]
BLOCK, HEADING, LINE = DocumentUnit.BLOCK, DocumentUnit.HEADING, DocumentUnit.LINE
FILE, PASSAGE = DocumentUnit.FILE, DocumentUnit.PASSAGE
BABYLM_WORDS = {"switchboard.train": 146_789, "childes.train": 747_537}


@pytest.fixture
def small(monkeypatch):
    """Pieces of 16 bytes and passages of 12."""
    monkeypatch.setattr(documents, "MAX_PIECE_BYTES", 16)
    monkeypatch.setattr(text_reader, "MAX_PASSAGE_BYTES", 12)


def _read(path, content, unit=BLOCK, **options):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(TextReader(path, unit, **options).read())


def _texts(path, content, unit=BLOCK, **options):
    """Whole documents: pieces are joined."""
    texts, parts = [], []
    for document in _read(path, content, unit, **options):
        parts.append(document.content)
        if not document.continues:
            texts.append("".join(parts))
            parts = []
    assert not parts, "the last piece says that it continues"
    return texts


TEXT = "\n \na\n b \n\n \t\nc\n= = = Title = = =\n\nd\n= = = Next = = = \n= not one\n\n"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (LINE, [*"a", " b ", "c", "= = = Title = = =", "d", "= = = Next = = = "]),
        (BLOCK, ["a\n b ", "c", "= = = Title = = =", "d", "= = = Next = = = "]),
        (
            HEADING,
            ["a\n b \n\n \t\nc", "= = = Title = = =\n\nd", "= = = Next = = = "],
        ),
        (FILE, [TEXT[3:].removesuffix("\n\n= not one\n\n").removesuffix("\n\n")]),
        (PASSAGE, ["a\n b ", "c", "= = = Title = = =", "d", "= = = Next = = = "]),
    ],
)
def test_the_unit_says_what_ends_a_document(tmp_path, unit, expected):
    *start, last = expected
    end = ["= not one"] if unit is LINE else []
    last = last if unit in (LINE, FILE) else f"{last}\n= not one"
    assert _texts(tmp_path / "x", TEXT, unit) == [*start, last, *end]


@pytest.mark.parametrize("unit", UNITS)
def test_blank_files_have_no_documents(tmp_path, unit):
    for content in ("", "\n", " \r\n\t\n", "\ufeff", "\ufeff\n", "\u3000"):
        assert _texts(tmp_path / "x", content, unit) == []


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_one_line_is_one_document(tmp_path, unit, end):
    assert _read(tmp_path / "x", f"one é{end}", unit) == [Document("one é")]


def test_a_character_at_the_end_of_the_file_is_not_cut_off(tmp_path):
    (tmp_path / "a.txt").write_text("one\n= = = t = = = \u00e9", "utf-8")
    reader = TextReader(tmp_path / "a.txt", DocumentUnit.BLOCK)
    assert [d.content for d in reader.read()] == ["one\n= = = t = = = \u00e9"]


def test_lines_keep_their_text(tmp_path):
    text = " a  b \r\nc\x0b\u2028d\t\r\n\r\n\x00e\rf"
    expected = [" a  b \r\nc\x0b\u2028d\t\r", "\x00e\rf"]
    assert _texts(tmp_path / "x", text) == expected
    assert _texts(tmp_path / "x", text, FILE) == [text]


@pytest.mark.parametrize("unit", UNITS)
def test_a_byte_order_mark_is_no_text(tmp_path, unit):
    assert _texts(tmp_path / "x", "\ufeffa\ufeffb", unit) == ["a\ufeffb"]


def test_compressed_text_is_read(tmp_path):
    assert _texts(tmp_path / "x", gzip.compress(b"a\n\nb\n")) == ["a", "b"]


@pytest.mark.parametrize("unit", UNITS)
@REPEATABLE
@given(
    text=st.text(st.sampled_from("ab=é語\u3000 \n\n\r\t\x1c\x85"), max_size=200),
    size=st.integers(4, 30),
)
def test_words_are_those_of_the_file(tmp_path_factory, unit, text, size):
    file = tmp_path_factory.mktemp("words") / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "MAX_PIECE_BYTES", size)
        patch.setattr(text_reader, "MAX_PASSAGE_BYTES", size)
        texts = _texts(file, text, unit)
    assert [word for text in texts for word in text.split()] == text.split()


@pytest.mark.parametrize("unit", UNITS)
@REPEATABLE
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "a",
                "bé",
                " ",
                "\n",
                "\n\n",
                " \n",
                "= = = T = = =\n",
                "\n= = = é = = =\n",
            ]
        ),
        max_size=40,
    ),
    size=st.integers(4, 30),
)
def test_chunks_and_pieces_do_not_show(tmp_path_factory, unit, parts, size):
    """Headings longer than a piece aside, which can't be known in time."""
    text = "".join(parts)
    file = tmp_path_factory.mktemp("chunks") / "x"
    size = max(size, *(len(line.encode()) + 1 for line in text.split("\n")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_reader, "MAX_PASSAGE_BYTES", size)
        whole = _texts(file, text, unit)
        patch.setattr(documents, "MAX_PIECE_BYTES", size)
        pieces = _read(file, text, unit)
        assert _texts(file, text, unit) == whole
    assert max([len(p.content.encode()) for p in pieces], default=0) <= size


def test_a_document_as_long_as_a_piece_is_whole(tmp_path, small):
    for unit in (LINE, BLOCK, HEADING, FILE):
        for end in ("", "\n", "\n\n\n"):
            text = f"{'a b ' * 3}語x" + end
            assert _read(tmp_path / "x", text, unit) == [Document(f"{'a b ' * 3}語x")]
    assert [d.continues for d in _read(tmp_path / "x", "a" * 17)] == [True, False]


@pytest.mark.parametrize("unit", [BLOCK, HEADING, FILE])
def test_pieces_end_behind_lines(tmp_path, small, unit):
    text = "before it\nand then\nmuch text\n12345\nand so on"
    assert _read(tmp_path / "x", text, unit) == [
        Document("before it\n", True),
        Document("and then\n", True),
        Document("much text\n12345\n", True),
        Document("and so on"),
    ]


def test_pieces_of_a_line_end_before_spaces_else_between_characters(tmp_path, small):
    text = "some words of it " + "語" * 9
    for unit in UNITS:
        assert _read(tmp_path / "x", f"\n{text}\n", unit) == [
            Document("some words of it", True),
            Document(" 語語語語語", True),
            Document("語語語語"),
        ]


def test_an_endless_word_comes_in_pieces(tmp_path):
    text = "é" * (documents.MAX_PIECE_BYTES + 1)
    pieces = _read(tmp_path / "x", text)
    assert "".join(piece.content for piece in pieces) == text
    assert [piece.continues for piece in pieces] == [True, True, False]
    assert len(pieces[0].content.encode()) == documents.MAX_PIECE_BYTES


@pytest.mark.parametrize("unit", UNITS)
def test_many_blank_lines_do_not_fill_the_memory(tmp_path, small, unit):
    text = "\n" * 200 + "a" + "\n" * 200 + "b" + "\n" * 200
    texts = _texts(tmp_path / "x", text, unit)
    assert [word for text in texts for word in text.split()] == ["a", "b"]
    assert max(len(d.content) for d in _read(tmp_path / "x", text, unit)) <= 40


def test_passages_are_filled_with_whole_lines(tmp_path, small):
    text = "12345\n67890\n12345\n6789012\n\nabc\nétéété\nx\n123456789012345\nx\n"
    assert _texts(tmp_path / "x", text, PASSAGE) == [
        "12345\n67890",
        "12345",
        "6789012",
        "abc",
        "étéété\nx",
        "123456789012345",
        "x",
    ]


def test_a_line_longer_than_a_piece_is_a_passage_by_itself(tmp_path, small):
    text = f"a\n{'b' * 20}\nc\nd\n\n\ne"
    assert _texts(tmp_path / "x", text, PASSAGE) == ["a", "b" * 20, "c\nd", "e"]


def test_what_follows_pieces_of_a_line_is_another_passage(tmp_path, small, monkeypatch):
    monkeypatch.setattr(text_reader, "MAX_PASSAGE_BYTES", 16)
    text = f"{'é' * 15}\nc\nd"
    assert _texts(tmp_path / "x", text, PASSAGE) == ["é" * 15, "c\nd"]


def test_endless_blank_lines_behind_a_document_are_let_go(tmp_path, small):
    """They are kept, as the text may go on, but not all of them at once."""
    pieces = _read(tmp_path / "x", "a" + "\n" * 200, FILE)
    assert len(pieces) > 5
    assert "".join(piece.content for piece in pieces).strip() == "a"


def test_invalid_utf8_is_located(tmp_path):
    content = b"good\n\nalso good" + b" long" * 9000 + b"\ncaf\xe9 au lait\n"
    with pytest.raises(UserError) as caught:
        _read(tmp_path / "x", content)
    assert "0xe9" in caught.value.what
    assert caught.value.where == f"{tmp_path / 'x'}, line 4, byte 45019"
    assert "iconv" in caught.value.remedy
    assert "data.replace_invalid_utf8=true" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "line", "byte"),
    [
        (b"\xef\xbb\xbf\xe9", 1, 3),
        (b"12345678901234\n1234567890\n\n123\xff", 4, 30),
        (b"1234567890123456789\xe9", 1, 19),
        (b"12345678901234567\n8\xe4\xb8 9", 2, 19),
        (b"a" * 14 + b"\x80" * 7, 1, 14),
        (b"ab\n\xc3", 2, 3),
        (b"\xed\xa0\x80", 1, 0),
    ],
)
def test_the_position_counts_from_the_start(tmp_path, small, content, line, byte):
    with pytest.raises(UserError) as caught:
        _read(tmp_path / "x", content)
    assert caught.value.where == f"{tmp_path / 'x'}, line {line}, byte {byte}"


def test_invalid_utf8_is_replaced_if_asked(tmp_path, small):
    content = b"caf\xe9 au lait et \x80\x80\x80\x80\x80\x80"
    texts = _texts(tmp_path / "x", content, replace_invalid_utf8=True)
    assert texts == [content.decode("utf-8", "replace")]


def test_the_decision_is_described(tmp_path):
    reader = TextReader(tmp_path / "x", PASSAGE, replace_invalid_utf8=True)
    assert reader.describe() == {
        "format": "text",
        "documents": "passage",
        "invalid_utf8": "replaced",
    }
    assert "invalid_utf8" not in TextReader(tmp_path / "x", LINE).describe()


def test_a_reader_can_be_sent_to_another_process(tmp_path):
    (tmp_path / "x").write_text("a\n\nb")
    reader = pickle.loads(pickle.dumps(TextReader(tmp_path / "x", BLOCK)))
    assert list(reader.read()) == list(reader.read()) == [Document("a"), Document("b")]


@pytest.mark.parametrize(
    ("sample", "unit"),
    [
        ("", BLOCK),
        ("one line", BLOCK),
        ("a\nb\n\nc\nd\n\ne", BLOCK),
        ("= = = One = = =\ntext\n\nmore", BLOCK),
        ("= = = One = = =\ntext\n\n= = = Two = = =\nmore", HEADING),
        ("some talk\n" * 3000, BLOCK),
        ("some talk\n" * 4000, PASSAGE),
        (("some talk\n" * 4000 + "\n") * 5, PASSAGE),
        (("some talk\n" * 3000 + "\n") * 5, BLOCK),
        ("語" * 11_000, PASSAGE),
    ],
)
def test_the_unit_fits_the_text(sample, unit):
    assert choose_unit(sample) is unit


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("bnc_spoken", PASSAGE),
        ("childes", HEADING),
        ("gutenberg", HEADING),
        ("open_subtitles", PASSAGE),
        ("simple_wiki", HEADING),
        ("switchboard", PASSAGE),
    ],
)
def test_the_unit_fits_babylm(shared_data, name, unit):
    file = shared_data / "corpus" / "babylm" / "dev" / f"{name}.dev"
    sample = file.read_bytes()[: 1024 * 1024].decode("utf-8", "replace")
    assert choose_unit(sample) is unit
    words = file.read_text("utf-8").split()
    read = TextReader(file, unit).read()
    assert [word for document in read for word in document.content.split()] == words


@pytest.mark.parametrize("name", BABYLM_WORDS)
def test_babylm_files_have_as_many_words_as_wc_says(shared_data, name):
    file = shared_data / "corpus" / "babylm" / "train" / name
    read = TextReader(file, LINE).read()
    assert sum(len(d.content.split()) for d in read) == BABYLM_WORDS[name]
