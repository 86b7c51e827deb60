"""The benchmark of the door to language models: it asks what it says, and its figure is one."""

import json

from benchmarks import language


def test_every_request_is_sent_and_read_and_the_figure_is_a_share(capsys):
    language.main(["--requests", "40", "--concurrency", "8", "--milliseconds", "5", "--json"])
    (figure,) = json.loads(capsys.readouterr().out)
    assert figure["figure"] == "requests_per_second_8_in_flight"
    assert figure["unit"] == "of 1,600 a second"
    assert 0 < figure["value"] <= 1.05
