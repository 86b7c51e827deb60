"""Listening: texts that are in no corpus, run through the subject to hear what a neuron does on each."""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import SubjectError
from pipeline.ports import SubjectModel, Tokens
from pipeline.rounds import Heard, Listening

BATCH = 256
"""Texts of one length run at a time; the subject cuts them where memory asks for it."""


def heard(subject: SubjectModel, asked: Listening, *, layer: int, length: int) -> list[Heard]:
    """What was asked for, one for each text, cut to `length` tokens. Nothing is loaded if there is no text."""
    windows = {text: _window(tokens, length) for text, tokens in _tokenized(subject, asked)}
    found: list[Heard] = [() for _ in asked.texts]
    by_length: dict[int, list[int]] = {}
    for place, (_, text) in enumerate(asked.texts):
        if n_tokens := len(windows[text].ids):
            by_length.setdefault(n_tokens, []).append(place)
    current: list[int] = []

    def batches() -> Iterator[list[list[int]]]:
        for _, places in sorted(by_length.items()):
            for start in range(0, len(places), BATCH):
                current[:] = places[start : start + BATCH]
                yield [windows[asked.texts[place][1]].ids for place in current]

    def receive(_: int, rows: slice, activations: Any) -> None:
        for place, one in zip(current[rows], activations, strict=True):
            neuron, text = asked.texts[place]
            values = one[:, neuron].float().tolist()
            pieces = [piece.decode("utf-8", errors="replace") for piece in windows[text].pieces]
            found[place] = list(zip(pieces, values, strict=True))

    if by_length:
        subject.capture(batches(), [layer], receive)
    return found


def _window(tokens: Tokens, length: int) -> Tokens:
    return Tokens(tokens.ids[:length], tokens.pieces[:length])


def _tokenized(subject: SubjectModel, asked: Listening) -> Iterator[tuple[str, Tokens]]:
    """Each text once; one that spells a special token that the subject cannot read literally has no tokens."""
    texts: Sequence[str] = list(dict.fromkeys(text for _, text in asked.texts))
    try:
        yield from zip(texts, subject.tokenize(texts), strict=True)
    except SubjectError:
        for text in texts:
            try:
                (tokens,) = subject.tokenize([text])
            except SubjectError:
                tokens = Tokens([], [])
            yield text, tokens
