"""Languages: English asks as it always did, another one adds its sentence and answers in its words."""

import json

import pytest

from pipeline import prompts
from pipeline.errors import SettingsError
from pipeline.evidence import Evidence
from pipeline.languages import FILE, in_language, parse
from pipeline.methods import METHODS, prompt_hash
from pipeline.ports import Request

SHOWN = Evidence(
    excerpts=[[("The", 0), (" cat", 10), (" sat", 0)]],
    tokens=[(" cat", 10)],
    exciting=[(" cat", 10)],
    promoted=[" x"],
    quiet=["y"],
)
CODES = sorted(json.loads(prompts.load(FILE).text))


def test_english_is_the_request_itself():
    request = METHODS["highlight"].request(SHOWN, model="m", seed=0)
    assert in_language(request, "en") is request
    assert prompt_hash("highlight", "en") == METHODS["highlight"].prompt_hash


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", METHODS)
def test_another_language_adds_a_sentence_and_changes_the_worked_answers_alone(name, code):
    english = METHODS[name].request(SHOWN, model="m", seed=0)
    other = in_language(english, code)
    assert other.messages[0][1].startswith(english.messages[0][1] + "\n\nWrite the explanation in ")
    for (role, before), (same_role, after) in zip(english.messages[1:], other.messages[1:], strict=True):
        assert role == same_role
        if role == "user":
            assert before == after
        else:
            said, translated = json.loads(before), json.loads(after)
            assert said.keys() == translated.keys()
            for key in said:
                assert (said[key] == translated[key]) == (key == "reasoning")
                assert not isinstance(said[key], list) or len(said[key]) == len(set(translated[key]))


def test_each_language_has_a_hash_of_its_own():
    assert len({prompt_hash("summary", code) for code in ("en", *CODES)}) == 1 + len(CODES)


def test_a_french_answer_reads_like_this():
    asked = in_language(METHODS["summary"].request(SHOWN, model="m", seed=0), "fr")
    assert asked.messages[2][1] == '{"explanation":"des noms de métaux, surtout quand quelque chose en est fait"}'


def test_a_language_without_words_is_refused():
    with pytest.raises(SettingsError, match=r"--language \(='klingon'\) must be one of de, en, es, fr"):
        parse("klingon")
    assert parse("fr") == "fr"
    assert isinstance(METHODS["summary"].request(SHOWN, model="m", seed=0), Request)
