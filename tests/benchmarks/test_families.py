"""Families are read right, or refused in a sentence."""

import pytest

from benchmarks import families


def test_each_family_is_read_as_a_plain_pass_reads_it_or_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        families.main(["llama", "fnet", "mixtral", "t5"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert lines[0] == "llama  read: layers.0.mlp.down_proj"
    assert lines[1].startswith("fnet  refused: ")
    assert lines[2].startswith("mixtral  refused: ")
    assert lines[3] == "1 read, 2 refused"
