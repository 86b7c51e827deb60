"""The words of the pages: every one has its French, with the same places to fill."""

import inspect
import re
from string import Formatter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer import heat, pages
from explorer.pages import environment
from explorer.words import FRENCH, LANGUAGES, preferred, say


def spoken():
    """Every text that a template or the server says."""
    loader = environment().loader
    sources = [loader.get_source(environment(), name)[0] for name in loader.list_templates()]
    sources += [inspect.getsource(module) for module in (heat, pages)]
    for source in sources:
        for double, single in re.findall(r"""\bt\(\s*(?:"([^"]*)"|'([^']*)')""", source):
            yield double or single


def test_every_word_of_a_page_has_its_french():
    found = set(spoken())
    assert len(found) > 150
    assert found - set(FRENCH) == set()


def test_a_translation_has_the_same_places_to_fill():
    for english, french in FRENCH.items():
        places = [{name for _, name, _, _ in Formatter().parse(text) if name} for text in (english, french)]
        assert places[0] == places[1], english
        assert french.strip() == french


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("fr-CA,fr;q=0.9,en;q=0.8", "fr"), ("en-GB,fr;q=0.5", "en"), ("de,fr;q=0.3,en;q=0.2", "fr"), ("", "en"), ("de", "en"),
     ("fr;q=nothing", "en"), ("*", "en")],
)  # fmt: skip
def test_the_language_is_what_the_reader_prefers_of_those_there_are(accepted, language):
    assert preferred(accepted) == language


@given(st.text())
def test_any_header_gives_a_language(accepted):
    assert preferred(accepted) in LANGUAGES


def test_what_a_language_lacks_is_said_in_english_and_braces_in_texts_are_no_form():
    assert say("fr", "no such words {here}") == "no such words {here}"
    assert say("fr", "{n} found", n="{x}") == "{x} trouvés"
