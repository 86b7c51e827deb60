"""Prompts: strict filling, hashes that follow the words, and corpus text that stays data."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prompts
from pipeline.errors import SettingsError
from pipeline.prompts import Prompt, as_data, cases, load, prompt_hash, read_object

# Also lone surrogates, which `st.text()` leaves out.
ANY_TEXT = st.text(st.characters(exclude_categories=()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_placeholders_are_filled_and_two_dollars_are_one():
    assert Prompt("p", "pay $price, $$${price} at most\n").fill(price="5") == "pay 5, $5 at most"


def test_every_missing_and_every_unused_name_is_told():
    with pytest.raises(SettingsError, match=r"lacks values for \['a', 'b'\] and has no place for \['x', 'y'\]"):
        Prompt("p", "$a $b $c").fill(c="1", x="2", y="3")


def test_a_dollar_that_starts_no_name_is_told():
    with pytest.raises(SettingsError, match=r"prompt `p` has a `\$` that starts no name; write `\$\$`"):
        Prompt("p", "5$ and $a").fill(a="1")


@given(ANY_TEXT)
def test_a_value_is_never_filled_again(value):
    assert Prompt("p", "[$a|$b]").fill(a=value + "$b ${b} $$", b="x") == f"[{value}$b ${{b}} $$|x]"


def test_an_unknown_prompt_names_those_that_exist():
    with pytest.raises(SettingsError, match=r"no prompt `nope.txt`; .*'cases.json', .*'simulate.user.txt'"):
        load("nope.txt")


def test_a_changed_letter_changes_the_hash_and_the_order_of_names_does_not():
    assert Prompt("p", "a").hash != Prompt("p", "b").hash
    assert Prompt("p", "a").hash != Prompt("q", "a").hash
    assert prompt_hash(["cases.json", "explain.user.txt"]) == prompt_hash(["explain.user.txt", "cases.json"])
    assert prompt_hash(["cases.json"]) != prompt_hash(["cases.json", "explain.user.txt"])


def test_each_worked_case_reaches_ten_and_leaves_zero_out_of_the_file():
    for case in cases():
        activations = [activation for excerpt in case.excerpts for _, activation in excerpt]
        assert max(activations) == 10
        assert min(activations) == 0
    assert not re.search(r"\", 0\]", load("cases.json").text)


@given(JSON)
def test_data_reads_back_as_it_was(value):
    assert json.loads(as_data(value)) == value


@given(ANY_TEXT)
def test_data_can_always_be_sent_and_is_one_line(value):
    rendered = as_data([value])

    assert rendered.encode("utf-8")
    assert len(rendered.splitlines()) == 1


@pytest.mark.parametrize(
    "token",
    ["<|endoftext|>", "<|im_start|>system", "</s>", "<s>", "<start_of_turn>", "<｜User｜>", "[INST]", "[/INST]"],
)
def test_no_control_token_of_a_language_model_survives_in_data(token):
    rendered = as_data([[token, 3]])

    assert token not in rendered
    assert json.loads(rendered) == [[token, 3]]


@given(st.dictionaries(st.text(), JSON))
def test_an_object_is_read_back_with_or_without_a_fence(value):
    text = json.dumps(value)

    assert read_object(f" {text}\n") == read_object(f"```json\n{text}\n```") == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '"a"',
        'Sure: {"a": 1}',
        '{"a": 1} {"a": 1}',
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        '{"a": "\\ud800"}',
        "[" * 100_000,
        '{"a": ' * 100_000,
        f'{{"a": {"9" * 5000}}}',
    ],
)
def test_what_is_not_one_clean_object_is_none(text):
    assert read_object(text) is None


@given(ANY_TEXT)
def test_any_text_is_an_object_or_none(text):
    assert isinstance(read_object(text), dict | None)


def test_all_files_of_the_folder_can_be_loaded():
    names = [file.name for file in prompts.files(prompts.__name__).iterdir() if file.name.endswith((".txt", ".json"))]

    assert len(names) >= 24
    assert all(load(name).text for name in names)
