"""The command `audit`: what it finds in a lake that was changed behind its back, and what it says it did not check."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

HEAD = "sha256:"


def audited(folder, *words):
    result = folder.type("audit", "--json", *words)
    return result.exit_code, json.loads(result.stdout)


def outcomes(found):
    return {check["id"]: check["outcome"] for check in found["checks"]}


def findings(found):
    return {check["id"]: check["findings"] for check in found["checks"] if check["findings"]}


def without_code(found):
    """The findings but those of the code, which says whether this checkout was changed."""
    return {name: lines for name, lines in findings(found).items() if name != "A18"}


def test_a_lake_as_it_was_made_is_clean(made):
    _, found = audited(made)
    assert without_code(found) == {}
    done = outcomes(found)
    assert list(done) == [f"A{number}" for number in range(1, 22)]
    del done["A18"]
    assert {name for name, outcome in done.items() if outcome == "not checked"} <= {"A2", "A10", "A21"}


def test_what_was_not_checked_is_said_with_the_reason(made):
    _, found = audited(made)
    for check in found["checks"]:
        if check["outcome"] == "not checked":
            assert check["not_checked"]


def test_a_run_ends_with_the_head_and_an_audit_holds_to_it(first, copied):
    folder, result = first
    head = next(line.split()[-1] for line in result.stdout.splitlines() if line.startswith("the ledger"))
    assert head == folder.lake.ledger.head()
    code, found = audited(copied, "--anchor", head)
    assert outcomes(found)["A2"] == "clean"
    newest = max((copied.home / "lake" / "subject" / "materializations" / "_delta_log").glob("*.json"))
    newest.unlink()
    lines = copied.lake.ledger.path.read_bytes().splitlines(keepends=True)
    copied.lake.ledger.path.write_bytes(b"".join(lines[:-1]))
    code, found = audited(copied, "--anchor", head)
    assert code == 1
    assert "A2" in findings(found)


def test_a_score_edited_behind_its_back_is_found_and_nothing_else_is_read(copied):
    file = next((copied.home / "lake" / "subject" / "scores").rglob("*.parquet"))
    pl.read_parquet(file).with_columns(pl.lit(1.0).alias("value")).write_parquet(file)
    code, found = audited(copied)
    assert code == 1
    assert list(findings(found)) == ["A4"]
    assert outcomes(found)["A5"] == "not checked"


def test_rows_that_are_not_those_recorded_are_found_though_their_write_was_sealed(copied):
    lake = copied.lake
    rows = lake.read("scores", layer=0)
    lake.replace("scores", rows.with_columns(pl.lit(1.0).alias("ci_high")), layer=0, record={})
    _, found = audited(copied)
    assert without_code(found)["A5"] == ["the rows of scores of layer 0 are not those that were recorded: they differ"]
    assert "`ci_high` differs" in without_code(found)["A14"][0]


def test_neurons_recomputed_alone_are_no_finding(copied):
    assert copied.type("run", "--neurons", "0:1").exit_code == 0
    _, found = audited(copied)
    assert without_code(found) == {}


def test_it_is_readable_and_exits_with_2_where_it_could_not_run(made, tmp_path):
    shown = made.type("audit").stdout
    assert "every data file is there and unchanged" in shown
    assert "Not checked" in shown
    nowhere = made.type("audit", "--lake", str(tmp_path / "nowhere"))
    assert nowhere.exit_code == 2
    assert "there is no lake" in nowhere.stderr
    assert made.type("audit", "--anchor", "abc").exit_code == 2


def test_heads_that_dagster_noted_are_anchors_without_being_given(first, tmp_path):
    folder = replace(first[0], home=Path(shutil.copytree(first[0].home, tmp_path / "copy")))
    _, found = audited(folder, "--quick")
    assert outcomes(found)["A2"] == "clean"
    newest = folder.lake.version("materializations")
    (folder.home / "lake" / "subject" / "materializations" / "_delta_log" / f"{newest:020}.json").unlink()
    lines = folder.lake.ledger.path.read_bytes().splitlines(keepends=True)
    folder.lake.ledger.path.write_bytes(b"".join(lines[:-2]))
    _, found = audited(folder, "--quick")
    assert "A2" in findings(found)


def test_a_head_that_was_noted_is_missed_where_the_ledger_was_taken_away(copied):
    head = copied.lake.ledger.head()
    shutil.rmtree(copied.lake.ledger.path.parent)
    result = copied.type("audit", "--quick", "--anchor", head)
    assert (result.exit_code, f"the ledger does not hold the head {head}" in result.stdout) == (1, True)


@pytest.mark.parametrize("neuron", ["99:1", "0:99999"])
def test_a_neuron_that_is_not_there_is_not_called_clean(made, neuron):
    result = made.type("audit", neuron, "--quick")
    assert (result.exit_code, f"neuron {neuron} is not in the lake" in result.stderr) == (2, True)


def test_quick_looks_at_bytes_and_references_alone(made):
    _, found = audited(made, "--quick")
    done = outcomes(found)
    left = [name for name, outcome in done.items() if outcome == "not checked"]
    assert left == [*(f"A{number}" for number in range(11, 18)), "A21"]


def test_one_neuron_is_audited_alone(made):
    _, found = audited(made, "0:1")
    assert without_code(found) == {}
    assert next(check["looked_at"] for check in found["checks"] if check["id"] == "A8") == "1 neurons"


def test_rows_that_lead_nowhere_are_counted(copied):
    lake = copied.lake
    lake.replace("explanations", lake.read("explanations", layer=0).head(3), layer=0, record={})
    _, found = audited(copied, "--quick")
    assert any("scores of no explanation" in line for line in findings(found)["A7"])
    assert any("neither an explanation nor a reason" in line for line in findings(found)["A8"])


def test_a_secret_in_a_table_is_found_and_not_repeated(copied, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "canary-1234567890")
    lake = copied.lake
    row = lake.read("materializations").head(1).with_columns(commit_uuid=pl.lit("x"), error=pl.lit("canary-1234567890"))
    lake.add("materializations", row, record={})
    result = copied.type("audit", "--quick")
    assert "1 rows of materializations.error hold a secret of this environment" in result.stdout
    assert "canary" not in result.stdout


def test_dagster_and_the_tables_are_compared_where_there_is_an_instance(made):
    _, found = audited(made, "--quick")
    assert outcomes(found)["A10"] == "clean"
