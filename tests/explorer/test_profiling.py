"""`plan --profile`: what it says of a shape, and that it agrees with `plan` on a lake that is there."""

import json

import pytest

from pipeline.profile import EXPLAIN, SIMULATE


def test_a_profile_needs_no_lake_and_says_what_it_would_take(empty, tmp_path):
    folder = empty.copy(tmp_path)
    result = folder.type("plan", "--profile", "gpt2-xl", "--windows", "50000", "--explainer", "gpt-4o-mini")
    assert result.exit_code == 0
    assert "48 layers of 6,400 neurons, 307,200 in all" in result.stdout
    assert "gpt-4o-mini: 3,379,200 requests" in result.stdout
    assert "Nothing was sent" in result.stdout
    assert not (folder.home / "lake").exists()

    found = json.loads(folder.type("plan", "--profile", "llama-70b", "--json").stdout)
    assert found["asked"] is None
    assert [each["fits"] for each in found["captures"]] == [False, False]


def test_a_shape_that_is_not_known_is_named(empty, tmp_path):
    result = empty.copy(tmp_path).type("plan", "--profile", "gpt5")
    assert result.exit_code == 2
    assert "must be one of gpt2, gpt2-xl, llama-70b" in result.stderr


@pytest.mark.parametrize("way", SIMULATE)
def test_requests_are_as_long_as_a_plan_says(made, tmp_path, way):
    words = ("plan", "--explainer", "gpt-4o-mini", "--simulation", way, "--json")
    stages = json.loads(made.copy(tmp_path).type(*words).stdout)["layers"]
    for table, usual in (("explanations", EXPLAIN), ("simulations", SIMULATE[way][1])):
        some = [stage for stage in stages if stage["table"] == table]
        sent = sum(stage["requests"] - stage["kept"] for stage in some)
        assert sum(stage["prompt_tokens"] for stage in some) / sent == pytest.approx(usual.prompt, rel=0.1)
        assert sum(stage["completion_tokens"] for stage in some) / sent == pytest.approx(usual.reply, rel=0.1, abs=1)
