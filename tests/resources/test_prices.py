"""Prices: what is known, what is not, and that the user's file goes first."""

import pytest

from pipeline.errors import SettingsError
from resources.prices import Price, open_prices

OPENAI = "https://api.openai.com/v1"


def test_a_dated_version_costs_what_its_name_does():
    prices = open_prices()
    assert prices.of("gpt-4o-mini-2024-07-18", endpoint=OPENAI) == prices.of("gpt-4o-mini", endpoint=OPENAI)
    assert prices.of("gpt-4o-mini", endpoint=OPENAI) == Price(0.15, 0.075, 0.60)


@pytest.mark.parametrize(
    ("model", "endpoint"), [("nobody", OPENAI), ("gpt-4o-mini", "http://127.0.0.1:8080/v1"), ("gpt-4o-mini-x", OPENAI)]
)
def test_what_stands_in_no_file_is_unknown(model, endpoint):
    assert open_prices().of(model, endpoint=endpoint) is None


def test_cached_tokens_are_part_of_the_prompt():
    assert Price(2.0, 0.5, 8.0).cost(prompt=1_000_000, cached=400_000, completion=100_000) == pytest.approx(2.2)


def test_a_file_of_the_user_goes_before_ours(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text('[[price]]\nmodel = "gpt-4o-mini"\ninput = 1\noutput = 2\n')
    assert open_prices(path).of("gpt-4o-mini", endpoint=OPENAI) == Price(1, 1, 2)
    assert open_prices(path).of("gpt-4o", endpoint=OPENAI) == open_prices().of("gpt-4o", endpoint=OPENAI)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("price = [", "is not valid TOML"),
        (
            '[[price]]\nmodel = "m"\ninput = -1\noutput = 2\n',
            "`price.0.input`: input should be greater than or equal to 0",
        ),
        ('[[price]]\nmodel = "m"\noutput = 2\n', "`price.0.input`: field required"),
        ('[[price]]\nmodel = "m"\ninput = inf\noutput = 2\n', "`price.0.input`: input should be a finite number"),
        ('[[price]]\nmodel = "m"\ninput = 1\noutput = 2\nin = 3\n', "`price.0.in`"),
    ],
)
def test_a_file_in_another_form_is_refused_with_the_line(tmp_path, text, said):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"the price file .*prices\.toml") as refused:
        open_prices(path)
    assert said in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        open_prices(tmp_path / "none.toml")
