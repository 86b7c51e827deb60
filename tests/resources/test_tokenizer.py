"""Text as tokens, on tokenizers of each kind: what is read literally, and which bytes each token covers."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import (
    POSITIONS,
    SPECIAL,
    byte_level_tokenizer,
    nfc_tokenizer,
    save_tokenizer,
    with_special_tokens,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pipeline.errors import SubjectError
from resources.subject import HuggingFaceSubject


def word_piece_tokenizer() -> Tokenizer:
    """A WordPiece in BERT's manner: lower case, accents stripped, unknown words as one token."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*"abcdefghijklmnopqrstuvwxyz.,[]", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "the"]
    vocabulary = {token: number for number, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """A SentencePiece BPE in Llama 2's manner: `▁` for spaces, unknown characters as bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def unigram_tokenizer() -> Tokenizer:
    """A unigram model in XLM-R's manner, whose vocabulary holds `</s>` as if it were a word."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "abs</>")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


TOKENIZERS = {
    "byte-level": byte_level_tokenizer,
    "WordPiece": word_piece_tokenizer,
    "byte fallback": byte_fallback_tokenizer,
    "unigram": unigram_tokenizer,
    "NFC": nfc_tokenizer,
}
UNKNOWN = {
    "WordPiece": {"unk_token": "[UNK]"},
    "byte fallback": {"unk_token": "<unk>"},
    "unigram": {"unk_token": "<unk>"},
}


@pytest.fixture(scope="module")
def reader_of(
    folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], HuggingFaceSubject]:
    made: dict[str, HuggingFaceSubject] = {}

    def reader(kind: str) -> HuggingFaceSubject:
        if kind not in made:
            folder = tmp_path_factory.mktemp("reader")
            shutil.copytree(folder_of("gpt2"), folder, dirs_exist_ok=True)
            save_tokenizer(TOKENIZERS[kind](), folder, **UNKNOWN.get(kind, {}))
            made[kind] = HuggingFaceSubject(str(folder))
        return made[kind]

    return reader


AWKWARD = [
    "",
    " ",
    "\n\n  \t",
    "\x00",
    "a\x00b",
    "👩‍👩‍👧 a",
    "שלום a",
    "e\u0301a\u0323\u0301",
    "ﬁ Å ½",
    "▁a",
    "<0x41>",
    "    a",
    "\ufeffa",
]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.sampled_from(AWKWARD + SPECIAL))
def test_the_pieces_of_a_text_give_the_text(
    kind: str, text: str, reader_of: Callable[[str], HuggingFaceSubject]
) -> None:
    (tokens,) = reader_of(kind).tokenize([text])
    assert len(tokens.ids) == len(tokens.pieces)
    assert b"".join(tokens.pieces) == (text.encode() if tokens.ids else b"")


def test_a_character_split_over_byte_level_tokens_keeps_its_bytes(
    reader_of: Callable[[str], HuggingFaceSubject],
) -> None:
    (tokens,) = reader_of("byte-level").tokenize(["the é😀"])
    assert tokens.pieces == [b"t", b"he", b" ", b"\xc3", b"\xa9", b"\xf0", b"\x9f", b"\x98", b"\x80"]


def test_a_byte_fallback_token_is_one_byte(reader_of: Callable[[str], HuggingFaceSubject]) -> None:
    (tokens,) = reader_of("byte fallback").tokenize(["a é a"])
    assert tokens.pieces == [b"a", b" ", b"\xc3", b"\xa9", b" a"]


def test_white_space_goes_to_the_word_piece_that_follows_or_to_the_last(
    reader_of: Callable[[str], HuggingFaceSubject],
) -> None:
    (tokens,) = reader_of("WordPiece").tokenize([" The  Áb.\n"])
    assert tokens.pieces == [b" The", "  Á".encode(), b"b", b".\n"]


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("byte-level", TEXT | st.sampled_from(AWKWARD)),
        # A mark of SentencePiece in the text cannot be told from a space by its token.
        ("byte fallback", TEXT.filter(lambda text: "▁" not in text)),
        ("unigram", st.text(alphabet="abs ", max_size=30)),
    ],
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_tokens_of_a_text_are_spelled_as_its_pieces_but_for_a_space_before_the_first(
    kind: str,
    texts: st.SearchStrategy[str],
    data: st.DataObject,
    reader_of: Callable[[str], HuggingFaceSubject],
) -> None:
    (tokens,) = reader_of(kind).tokenize([data.draw(texts)])
    spelled = reader_of(kind).spell(tokens.ids)
    assert spelled[1:] == tokens.pieces[1:]
    assert [piece.removeprefix(b" ") for piece in spelled[:1]] == [p.removeprefix(b" ") for p in tokens.pieces[:1]]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="the ab.", max_size=30))
def test_word_pieces_are_spelled_as_their_pieces_but_for_spaces(
    text: str, reader_of: Callable[[str], HuggingFaceSubject]
) -> None:
    (tokens,) = reader_of("WordPiece").tokenize([text])
    assert [piece.strip() for piece in reader_of("WordPiece").spell(tokens.ids)] == [p.strip() for p in tokens.pieces]


def test_a_word_piece_within_a_word_is_told_from_one_that_begins_a_word(
    reader_of: Callable[[str], HuggingFaceSubject],
) -> None:
    subject = reader_of("WordPiece")
    (tokens,) = subject.tokenize(["The Áb."])
    assert subject.spell(tokens.ids) == [b" the", b" a", b"b", b" ."]


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("byte-level", {0: b"<pad>", 3: b"<|endoftext|>"}),
        ("NFC", {264: b"    "}),
        ("WordPiece", {1: b"[UNK]", 2: b"[CLS]"}),
        ("byte fallback", {0: b"<unk>", 1: b"<s>"}),
        ("unigram", {0: b"<unk>", 1: b"</s>"}),
    ],
)
def test_an_added_token_is_spelled_as_it_was_added_and_an_unknown_one_not_at_all(
    kind: str, known: dict[int, bytes], reader_of: Callable[[str], HuggingFaceSubject]
) -> None:
    assert reader_of(kind).spell([*known, 319, 10**9]) == [*known.values(), b"", b""]


def test_a_vocabulary_that_tells_neither_bytes_nor_beginnings_is_spelled_as_it_is(gpt2: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "##é": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    save_tokenizer(tokenizer, gpt2)
    assert HuggingFaceSubject(str(gpt2)).spell([1, 0]) == ["##é".encode(), b"a"]


@pytest.mark.parametrize(
    ("kind", "text", "special"),
    [
        ("byte-level", "a<|endoftext|>b</s>", {0, 1, 2, 3}),
        ("WordPiece", "a [CLS] b [SEP] [PAD]", {0, 2, 3}),
        ("byte fallback", "<s>a</s>", {1, 2}),
        ("unigram", "a</s>b", {1}),
    ],
)
def test_special_tokens_written_in_the_text_are_ordinary_text(
    kind: str, text: str, special: set[int], reader_of: Callable[[str], HuggingFaceSubject]
) -> None:
    (tokens,) = reader_of(kind).tokenize([text])
    assert special.isdisjoint(tokens.ids)
    assert b"".join(tokens.pieces) == text.encode()


def test_a_special_spelling_that_cannot_be_read_literally_is_refused(gpt2: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    save_tokenizer(tokenizer, gpt2)
    subject = HuggingFaceSubject(str(gpt2))
    assert subject.tokenize(["a a"])[0].ids == [0, 0]
    with pytest.raises(SubjectError, match="spells the special token '</s>'"):
        subject.tokenize(["a </s>"])


def test_a_long_text_is_neither_cut_nor_warned_of(
    reader_of: Callable[[str], HuggingFaceSubject], capfd: pytest.CaptureFixture[str]
) -> None:
    for kind, text in [("byte-level", "é" * 250_000), ("byte-level", "a" * 500_000), ("WordPiece", "the " * 125_000)]:
        (tokens,) = reader_of(kind).tokenize([text])
        assert b"".join(tokens.pieces) == text.encode()
        assert len(tokens.ids) >= 125_000
    assert "longer" not in capfd.readouterr().err


def test_truncation_and_padding_kept_in_a_tokenizer_file_are_ignored(gpt2: Path) -> None:
    tokenizer = with_special_tokens(byte_level_tokenizer(), "<s> $A </s>")
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    save_tokenizer(tokenizer, gpt2)
    subject = HuggingFaceSubject(str(gpt2))
    assert len(subject.tokenize(["a" * 30])[0].ids) == 30
    assert subject.max_tokens() == POSITIONS - 2
