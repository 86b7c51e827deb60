"""The subject's tokenizer: text as tokens, the bytes that each token covers, and what surrounds a window.

Text is taken literally: what looks like a special token in it is ordinary text.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import SubjectError
from pipeline.ports import Tokens
from resources.model_folder import first_line, quiet

_PROBES = ("a", "the", "0", "。")


@dataclass(frozen=True)
class SubjectTokenizer:
    """The tokenizer, with what surrounds a window and how its tokens are spelled."""

    subject: str
    """Name of the model, for messages."""
    backend: Any
    prefix: tuple[int, ...]
    """Special tokens before a window."""
    suffix: tuple[int, ...]
    """Special tokens after it."""
    pad: int
    ordinary: tuple[int, ...]
    """The tokens that text can become, ascending."""
    special: frozenset[int]
    """Tokens that text must never become, however it is spelled."""
    unknown: int | None
    spelling: Callable[[str], bytes] | None
    """The bytes that a token of the vocabulary stands for; None when only offsets tell."""
    continuing: str | None
    """What the spelling of a token within a word begins with (WordPiece: `##`); None for other vocabularies."""
    added: Mapping[int, bytes]

    def spell(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes that each token stands for by itself, b"" for one that the tokenizer does not know.

        WordPiece marks a token within a word, so any other gets the space that stands before a word, before signs
        too. Where the vocabulary tells neither bytes nor beginnings of words, its spelling is given as it is.
        """
        return [self._spelled(token) for token in token_ids]

    def _spelled(self, token: int) -> bytes:
        spelled = self.backend.id_to_token(token)
        if token in self.added or spelled is None:
            return self.added.get(token, b"")
        if self.spelling is not None:
            return self.spelling(spelled)
        if self.continuing is not None:
            inside = spelled.startswith(self.continuing)
            spelled = spelled.removeprefix(self.continuing) if inside else f" {spelled}"
        return str(spelled).encode()

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Each text as tokens, special tokens left out.

        A vocabulary can hold the spelling of a special token as an ordinary entry (unigram models). Such a token is
        replaced by the tokenizer's unknown token.

        Raises:
            SubjectError: it has no unknown token.
        """
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [self._tokens(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def _tokens(self, text: str, encoding: Any) -> Tokens:
        ids: list[int] = encoding.ids
        pieces = None
        if self.spelling is not None:
            pieces = _spelled_pieces(text, ids, encoding.tokens, spelling=self.spelling, added=self.added)
        if pieces is None:
            pieces = _pieces_from_offsets(text, encoding.offsets)
        if not self.special.isdisjoint(ids):
            if self.unknown is None:
                token = next(token for token in ids if token in self.special)
                raise SubjectError(
                    f"text of the corpus spells the special token {self.backend.id_to_token(token)!r} of "
                    f"{self.subject!r}, whose tokenizer cannot read it literally; take it out of the corpus."
                )
            ids = [self.unknown if token in self.special else token for token in ids]
        return Tokens(ids=ids, pieces=pieces)


def load_tokenizer(folder: Path, *, vocabulary: int, subject: str) -> SubjectTokenizer:
    """The tokenizer of a model folder; `vocabulary` is how many tokens the model knows.

    Raises:
        SubjectError: it cannot be loaded, or is no fast tokenizer, or gives no tokens.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # any fault in a stranger's tokenizer ends here
        raise SubjectError(f"subject {subject!r}: its tokenizer cannot be loaded ({first_line(error)}).") from error
    if not tokenizer.is_fast:
        raise SubjectError(
            f"subject {subject!r} has no fast tokenizer ({type(tokenizer).__name__}): expected a tokenizer.json."
        )
    backend = tokenizer.backend_tokenizer
    # A tokenizer.json may carry the truncation and padding of its last use.
    backend.no_truncation()
    backend.no_padding()
    prefix, suffix = _special_tokens_around(backend, subject)
    backend.encode_special_tokens = True
    # It has done its part, and some of them shorten the offsets.
    backend.post_processor = None
    added = backend.get_added_tokens_decoder()
    special = {token for token, entry in added.items() if entry.special} | set(tokenizer.all_special_ids)
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return SubjectTokenizer(
        subject=subject,
        backend=backend,
        prefix=prefix,
        suffix=suffix,
        pad=next(pad for pad in pads if pad is not None and pad < vocabulary),
        # A model can have more embeddings than tokens, for the sake of a round number.
        ordinary=tuple(sorted({token for token in backend.get_vocab().values() if token < vocabulary} - special)),
        special=frozenset(special - {tokenizer.unk_token_id}),
        unknown=tokenizer.unk_token_id,
        spelling=_spelling(backend),
        continuing=_continuing(backend),
        added={token: entry.content.encode() for token, entry in added.items()},
    )


def _special_tokens_around(backend: Any, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and after a text, found by comparing with and without."""
    for probe in _PROBES:
        bare = backend.encode(probe, add_special_tokens=False).ids
        whole = backend.encode(probe, add_special_tokens=True).ids
        starts = [start for start in range(len(whole) - len(bare) + 1) if whole[start : start + len(bare)] == bare]
        if bare and len(starts) == 1:
            return tuple(whole[: starts[0]]), tuple(whole[starts[0] + len(bare) :])
    raise SubjectError(
        f"subject {name!r}: its tokenizer gives no token for any of {', '.join(_PROBES)}, so the special tokens that it "
        "puts around a text cannot be found. Use the tokenizer that belongs to the model."
    )


def _spelling(backend: Any) -> Callable[[str], bytes] | None:
    """How the tokenizer spells bytes in its vocabulary, from its decoder; None when it keeps no exact spelling."""
    kinds = _decoder_kinds(json.loads(backend.decoder.__getstate__())) if backend.decoder is not None else set()
    if "ByteLevel" in kinds:
        alphabet = _byte_level_alphabet()
        return lambda token: bytes(alphabet.get(character, 0) for character in token)
    if kinds & {"ByteFallback", "Metaspace"}:
        return _metaspace_bytes
    return None


def _continuing(backend: Any) -> str | None:
    model = backend.model
    return model.continuing_subword_prefix if type(model).__name__ == "WordPiece" else None


def _decoder_kinds(decoder: Mapping[str, Any]) -> set[str]:
    return {decoder["type"]}.union(*(_decoder_kinds(part) for part in decoder.get("decoders", ())))


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (`bytes_to_unicode` of its encoder.py), turned around."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _metaspace_bytes(token: str) -> bytes:
    """SentencePiece's spelling: `<0xE2>` is a byte, `▁` a space."""
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def _spelled_pieces(
    text: str,
    ids: Sequence[int],
    tokens: Sequence[str],
    *,
    spelling: Callable[[str], bytes],
    added: Mapping[int, bytes],
) -> list[bytes] | None:
    """The bytes of each token by its own spelling, or None where they do not give the text (it was normalised)."""
    pieces = [added[token] if token in added else spelling(spelled) for token, spelled in zip(ids, tokens, strict=True)]
    whole, joined = text.encode(), b"".join(pieces)
    if pieces and joined == b" " + whole:
        # Some tokenizers put a space before the first word.
        first = next(place for place, piece in enumerate(pieces) if piece)
        pieces[first] = pieces[first][1:]
        return pieces
    return pieces if joined == whole else None


def _pieces_from_offsets(text: str, offsets: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes from the end of one token to the end of the next; what follows the last token goes to it.

    Where several tokens share one character, the first of them gets it.
    """
    pieces, position = [], 0
    for number, (_, end) in enumerate(offsets):
        stop = len(text) if number == len(offsets) - 1 else max(position, end)
        pieces.append(text[position:stop].encode())
        position = stop
    return pieces
