"""Ten thousand malformed replies, shared over everything that reads replies: no crash, no invented word or number, and
each of them accounted for by a value that it holds or by a reason.

A reply is malformed by damage to a good one, as endpoints and models do it: pieces cut out, put in, doubled, or replaced.
"""

import json
import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline import (
    json_many_simulator,
    json_schema_simulator,
    json_simulator,
    json_sparse_simulator,
    logprobs_simulator,
    methods,
    prompt_simulator,
    prompts,
)
from pipeline.ports import Likely, Reply
from pipeline.provenance import canonical_json
from pipeline.scripted_tokens import tokens
from pipeline.tables import MISSING
from pipeline.testing import likely_of
from resources import answers

N_TOKENS = 12
PAIRS = [[index, value] for index, value in enumerate([0, 10, 1, 7, 0, 0, 0, 2, 0, 0, 3, 10])]
GOOD = {
    "explanation": json.dumps({"explanation": "names of cats, and of dogs"}),
    "several": json.dumps({"explanations": ["names of cats", "names of dogs"], "explanation": "cats"}),
    "json": json.dumps({"activations": PAIRS}),
    "fenced": f"```json\n{json.dumps({'activations': PAIRS})}\n```",
    "many": json.dumps({"excerpts": {"0": PAIRS, "1": PAIRS[:3]}}),
    "closed": json.dumps({"excerpts": {"0": [*PAIRS[1:4], [11, "end"]], "1": [[2, "end"]]}}),
    "schema": json.dumps({"activations": {str(index): value for index, value in PAIRS}}),
    "number": "10\n",
    "chat": json.dumps(
        {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop", "logprobs": {"content": [
            {"token": "yes", "logprob": -0.1, "top_logprobs": [{"token": "yes", "logprob": -0.1}]}]}}],
         "usage": {"prompt_tokens": 5, "completion_tokens": 1}, "model": "m"}
    ),
    "completion": json.dumps(
        {"choices": [{"text": "ab7", "finish_reason": "length", "logprobs": {
            "tokens": ["a", "b", "7"], "token_logprobs": [None, -1, -2],
            "top_logprobs": [None, {"b": -1}, {"7": -2, "8": -3}]}}]}
    ),
}  # fmt: skip
PIECES = (
    "", "]", "[", "}", "{", ",", '"', ":", " ", "\n", "null", "NaN", "-1", "11", "1e999", "true", "0", "7", "10", "1.5",
    "\\ud800", "\ud800", "\x00", "é", "<|endoftext|>", "I cannot help with that.", "[[", "[3, 9]",
)  # fmt: skip


def malformed(seed):
    """A good reply with up to three pieces cut out, put in, or replaced."""
    draw = random.Random(seed)
    text = draw.choice(sorted(GOOD.values()))
    for _ in range(draw.randint(1, 3)):
        place, length = draw.randint(0, len(text)), draw.randint(0, 12)
        text = text[:place] + draw.choice(PIECES) + text[place + length :]
    return text


def said(text, **more):
    return Reply("sha256:0", text, None, **more)


def accounted(simulated, n_tokens, held):
    """One simulation: what it expects is held by the reply, or there is a reason."""
    if simulated.expected is None:
        assert simulated.missing_because in MISSING
        assert simulated.coverage == 0
        return
    assert simulated.missing_because is None
    assert len(simulated.expected) == n_tokens
    known = [(index, value) for index, value in enumerate(simulated.expected) if value is not None]
    assert 0 < simulated.coverage == len(known) / n_tokens
    assert all(held(index, value) for index, value in known)


def in_json(text):
    """Whether [index, value] is a pair of the object that the text is."""
    value = prompts.read_object(text)
    return lambda index, number: [index, number] in value["activations"]


def read_json(text):
    accounted(json_simulator.parse(said(text), N_TOKENS), N_TOKENS, in_json(text))


def read_json_many(text):
    excerpts = (prompts.read_object(text) or {}).get("excerpts")
    for place, (found, length) in enumerate(
        zip(json_many_simulator.parse(said(text), [N_TOKENS, 3]), [N_TOKENS, 3], strict=True)
    ):
        accounted(found, length, lambda index, value, of=str(place): [index, value] in excerpts[of])


def read_json_sparse(text):
    excerpts = (prompts.read_object(text) or {}).get("excerpts")

    def held(of, index, value):
        said = [pair for pair in excerpts[of] if pair[0] == index]
        return [index, value] in said if said else value == 0

    for place, (found, length) in enumerate(
        zip(json_sparse_simulator.parse(said(text), [N_TOKENS, 3]), [N_TOKENS, 3], strict=True)
    ):
        accounted(found, length, lambda index, value, of=str(place): held(of, index, value))


def read_json_closed(text):
    excerpts = (prompts.read_object(text) or {}).get("excerpts")

    def held(of, index, value):
        said = [pair for pair in excerpts[of] if pair[0] == index and not isinstance(pair[1], str)]
        last = max(pair[0] for pair in excerpts[of])
        return [index, value] in said if said else value == 0 and index <= last

    for place, (found, length) in enumerate(
        zip(json_sparse_simulator.parse(said(text), [N_TOKENS, 3], closed=True), [N_TOKENS, 3], strict=True)
    ):
        accounted(found, length, lambda index, value, of=str(place): held(of, index, value))


def read_json_schema(text):
    value = prompts.read_object(text)
    found = json_schema_simulator.parse(said(text), N_TOKENS)
    accounted(found, N_TOKENS, lambda index, number: value["activations"][str(index)] == number)


def read_json_logprobs(text):
    likely = likely_of(tokens(text.encode(errors="replace").decode(), digits=len(text) % 2 + 1))
    accounted(
        logprobs_simulator.parse(said(text, likely=likely), N_TOKENS), N_TOKENS, lambda _, value: 0 <= value <= 10
    )


def read_all_at_once(text):
    pieces = [Likely(piece, ((piece, -0.1), ("7", -3.0))) for piece in text.split(",")]
    ten = Likely("10" if len(text) % 2 else text[:2], ())
    found = prompt_simulator.parse_at_once(said(text, likely=(ten, *pieces)), len(pieces))
    accounted(found, len(pieces), lambda _, value: 0 <= value <= 10)


def read_one_at_a_time(text):
    replies = [
        said(piece, likely=likely_of(tokens(piece))) for piece in text.encode(errors="replace").decode().split(",")
    ]
    accounted(prompt_simulator.parse_by_token(replies), len(replies), lambda _, value: 0 <= value <= 10)


def read_explanation(text):
    for name in methods.ASKING:
        found, reason = methods.read(name, said(text))
        assert bool(found) == (reason is None)
        assert reason is None or reason in MISSING
        words = "".join(strings(prompts.read_object(text)))
        assert all("".join(one.split()) in "".join(words.split()) for one in found)


def strings(value):
    """All texts inside a JSON value."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for one in inside for text in strings(one)]


ECHOED = canonical_json({"echo": [1, 2], "logprobs": 20, "messages": [["prompt", "ab7"]]})


def read_body(text):
    for request in ("{}", ECHOED, canonical_json({"logprobs": 5})):
        answer = answers.read(200, text.encode("utf-8", errors="surrogatepass"), request)
        assert answer.missing_because is None or answer.missing_because in MISSING
        assert answer.text is not None or answer.missing_because is not None
        for one in answer.likely or ():
            assert all(logprob <= 0 for _, logprob in one.tokens)


PARSERS = (
    read_json,
    read_json_many,
    read_json_sparse,
    read_json_closed,
    read_json_schema,
    read_json_logprobs,
    read_all_at_once,
    read_one_at_a_time,
    read_explanation,
    read_body,
)
EACH = -(-10_000 // len(PARSERS))


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
def test_ten_thousand_malformed_replies_are_each_accounted_for(parser):
    @settings(max_examples=EACH, deadline=None, database=None, phases=[Phase.generate])
    @given(st.integers(0, 2**40))
    def throw(seed):
        parser(malformed(seed))

    throw()


def test_good_replies_are_read_by_what_reads_them():
    assert json_simulator.parse(said(GOOD["json"]), N_TOKENS).coverage == 1
    assert json_simulator.parse(said(GOOD["fenced"]), N_TOKENS).coverage == 1
    assert [found.coverage for found in json_many_simulator.parse(said(GOOD["many"]), [N_TOKENS, 3])] == [1, 1]
    likely = likely_of(tokens(GOOD["json"]))
    assert logprobs_simulator.parse(said(GOOD["json"], likely=likely), N_TOKENS).coverage == 1
    assert methods.read("token-activation-pairs", said(GOOD["explanation"])) == (("names of cats, and of dogs",), None)
    assert answers.read(200, GOOD["chat"].encode()).text == "yes"
    assert len(answers.read(200, GOOD["completion"].encode(), ECHOED).likely) == 2
