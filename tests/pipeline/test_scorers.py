"""Scorers: what may be named, and which tables each needs."""

import pytest

from pipeline import scorers
from pipeline.errors import SettingsError


@pytest.mark.parametrize(("text", "said"), [("luck", "no scorer 'luck'"), ("detection,detection", "twice")])
def test_names_that_are_unknown_or_doubled_are_refused(text, said):
    with pytest.raises(SettingsError, match=said):
        scorers.parse(text)


def test_scorers_are_separated_by_commas():
    assert scorers.parse("") == ()
    assert scorers.parse(" fuzzing , ablation") == ("fuzzing", "ablation")


def test_each_needs_its_own_tables():
    assert scorers.tables(()) == ()
    assert scorers.tables(("ablation", "detection")) == ("judgements", "ablations")
    assert scorers.judging(("ablation", "detection")) == ("detection",)
    assert scorers.tables(("embedding:m",)) == ("judgements",)
    assert scorers.measuring(("detection", "embedding:local:./m", "intruder"), "gpt") == (
        ("embedding", "local:./m"),
        ("intruder", "gpt"),
    )
    assert scorers.on_simulator(("intruder",))
    assert not scorers.on_simulator(("embedding:m", "ablation"))
