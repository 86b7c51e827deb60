"""The benchmark of prompt tokens: what it takes for OpenAI's layout has all that this layout has, and no more."""

from benchmarks.tokens import prompt, to_explain, to_simulate
from pipeline import prompts


def test_a_line_for_each_token_and_what_is_not_zero_twice_where_most_is():
    excerpt = [("a", 0)] * 9 + [("b", 7)]
    text = to_explain([excerpt])
    worked, _, own = text.rpartition("\n\n")
    assert own.splitlines() == ["<start>", *["a\t0"] * 9, "b\t7", "<end>", "Only what is not 0:", "<start>", "b\t7", "<end>", "Explanation:"]  # fmt: skip
    assert all(case.explanation in worked for case in prompts.cases())
    assert "Only" not in to_explain([[("a", 0), ("b", 7)]]).rpartition("\n\n")[2]


def test_every_activation_is_unknown_where_one_is_to_be_predicted():
    own = to_simulate("names of cats", ["a", "b"]).rpartition("\n\n")[2]
    assert own.splitlines() == ["Explanation: names of cats", "<start>", "a\tunknown", "b\tunknown", "<end>"]


def test_a_message_takes_four_tokens_more_than_its_text_and_a_plain_prompt_none():
    assert prompt([["system", "abc"], ["user", "de"]], len) == 3 + 4 + 2 + 4 + 3
    assert prompt([["prompt", "abc"]], len) == 3
