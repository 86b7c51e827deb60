"""Imports keep the files that were read: they come back byte for byte, and give the same rows again."""

import gzip
import json
import shutil

import polars as pl
import pytest

from pipeline import originals as parts
from resources.delta import DeltaLake


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".neuronledger-export"
    }


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    assert made.type("export", "openai", str(folder), "--layers", "0").exit_code == 0
    return folder


def verified(folder, *words):
    result = folder.type("verify", *words, "--json")
    return result.exit_code, [(link["outcome"], link["said"]) for link in json.loads(result.stdout)]


def taken(copied, exported, home):
    """A few neurons of an export, imported; the folder."""
    neurons = sorted(int(path.stem) for path in (exported / "collated-activations" / "0").iterdir())[:3]
    for path in exported.rglob("*.json*"):
        if path.parent.name == "0" and path.stem in map(str, neurons):
            (home / path.relative_to(exported)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, home / path.relative_to(exported))
    assert copied.type("import", "openai", str(home)).exit_code == 0
    return home


def test_imported_files_come_back_byte_for_byte(copied, exported, tmp_path):
    files = digests(taken(copied, exported, tmp_path / "in"))
    lines = b'\xef\xbb\xbflayer,neuron,explanation\r\n0,1,"two\r\nlines"\r\n'
    (tmp_path / "mine.csv").write_bytes(lines)
    assert copied.type("import", "csv", str(tmp_path / "mine.csv")).exit_code == 0
    said = json.loads(copied.type("export", "originals", str(tmp_path / "out"), "--json").stdout)
    assert said["files"] == {"csv": 1, "openai": len(files)}
    assert digests(tmp_path / "out" / "openai") == files
    assert digests(tmp_path / "out" / "csv") == {"mine.csv": lines}
    copied.type("export", "originals", str(tmp_path / "one"), "--source", "csv")
    assert digests(tmp_path / "one") == {"csv/mine.csv": lines}


def test_kept_files_give_the_same_rows_again_and_a_changed_row_is_told(copied, exported, tmp_path):
    taken(copied, exported, tmp_path / "in")
    code, ((outcome, said),) = verified(copied, "--source", "openai")
    assert (code, outcome) == (0, "equal")
    assert "files give the same" in said
    lake, table = copied.lake, "imported_explanations"
    rows = lake.read(table, layer=0)
    other = rows.with_columns(
        pl.when(pl.int_range(pl.len()) == 1).then(pl.lit("another")).otherwise("text").alias("text")
    )
    lake.replace(table, other[1:], layer=0, record={})
    assert verified(copied, "--source", "openai") == (
        1, [("differs", f"1 rows of {table} are missing; 1 rows of {table} have other values")]
    )  # fmt: skip
    more = pl.concat([rows, rows[:1].with_columns(pl.lit("0" * 16).alias("explanation_id"))])
    lake.replace(table, more, layer=0, record={})
    assert verified(copied, "--source", "openai") == (
        1, [("differs", f"1 rows of {table} are in none of the kept files")]
    )  # fmt: skip
    found = {check["id"]: check for check in json.loads(copied.type("audit", "--json").stdout)["checks"]}
    assert found["A21"]["outcome"] == "findings"


def test_each_import_of_a_source_is_held_against_its_own_files(copied, tmp_path):
    """The first brought neurons 1 and 2; the second only 2, with another text; the third is the first again."""
    both, one = "neuron,explanation\n0:1,dogs\n0:2,cats\n", "neuron,explanation\n0:2,birds\n"
    expected = (["2 rows"], ["1 rows", "1 rows"], ["2 rows", "0 rows", "0 rows"])
    for text, of_each in zip((both, one, both), expected, strict=True):
        (tmp_path / "a.csv").write_text(text)
        assert copied.type("import", "csv", str(tmp_path / "a.csv")).exit_code == 0
        code, found = verified(copied, "--source", "csv")
        assert (code, [outcome for outcome, _ in found]) == (0, ["equal"] * len(of_each))
        assert all(count in said for count, (_, said) in zip(of_each, found, strict=True)), found
    copied.type("export", "originals", str(tmp_path / "out"))
    assert (tmp_path / "out" / "csv" / "a.csv").read_text() == both


def test_records_stay_where_only_other_files_of_a_neuron_could_be_read_again(copied, exported, tmp_path):
    home = taken(copied, exported, tmp_path / "in")
    before = copied.table("imported_records")
    for path in (home / "collated-activations" / "0").iterdir():
        path.write_text("{")
    assert copied.type("import", "openai", str(home)).exit_code == 3
    assert copied.table("imported_records").equals(before)
    assert [outcome for outcome, _ in verified(copied, "--source", "openai")[1]] == ["equal", "equal"]


def test_a_file_with_some_wrong_lines_is_kept_whole_and_one_of_which_nothing_was_taken_is_not(copied, tmp_path):
    (tmp_path / "a.csv").write_text("neuron,explanation\n0:1,dogs\nx,cats\n")
    (tmp_path / "b.csv").write_text("nothing\n")
    assert copied.type("import", "csv", str(tmp_path)).exit_code == 3
    assert verified(copied, "--source", "csv") == (0, [("equal", "1 kept file gives the same 1 rows again")])
    copied.type("export", "originals", str(tmp_path / "out"))
    assert list(digests(tmp_path / "out" / "csv")) == ["a.csv"]


def test_packed_batches_are_kept_as_they_were_packed(copied, tmp_path):
    place = tmp_path / "in" / "m" / "0" / "explanations"
    place.mkdir(parents=True)
    for batch in range(2):
        lines = "".join(
            json.dumps({"layer": "0", "index": str(n), "description": f"{batch} {n}"}) + "\n" for n in range(3)
        )
        (place / f"batch-{batch}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=batch))
    assert copied.type("import", "neuronpedia", str(tmp_path / "in")).exit_code == 0
    assert verified(copied, "--source", "neuronpedia") == (0, [("equal", "2 kept files give the same 6 rows again")])
    copied.type("export", "originals", str(tmp_path / "out"))
    assert digests(tmp_path / "out" / "neuronpedia") == digests(tmp_path / "in")


def test_a_file_larger_than_a_part_is_kept_in_parts(copied, tmp_path, monkeypatch):
    for module in (parts, __import__("explorer.originals", fromlist=["PART"])):
        monkeypatch.setattr(module, "PART", 10)
    text = "neuron,explanation\n0:1,dogs\n"
    (tmp_path / "a.csv").write_text(text)
    copied.type("import", "csv", str(tmp_path / "a.csv"))
    assert copied.table("imported_originals").get_column("part").max() >= 2
    assert verified(copied, "--source", "csv")[1][0][0] == "equal"
    copied.type("export", "originals", str(tmp_path / "out"))
    assert (tmp_path / "out" / "csv" / "a.csv").read_text() == text


def test_files_that_were_not_kept_are_said_not_to_be(copied, tmp_path):
    (tmp_path / "a.csv").write_text("neuron,explanation\n0:1,dogs\n")
    assert copied.type("import", "csv", str(tmp_path / "a.csv"), "--keep-originals", "no").exit_code == 0
    assert copied.table("imported_originals").is_empty()
    assert verified(copied, "--source", "csv") == (2, [("not checked", "its files were not kept")])
    said = copied.type("export", "originals", str(tmp_path / "out"))
    assert said.exit_code == 2
    assert "no files are kept of csv" in said.stderr
    assert not (tmp_path / "out").exists()
    said = copied.type("verify", "--source", "nobody")
    assert said.exit_code == 2
    assert "nothing was imported under the name 'nobody'; there are csv" in said.stderr


def test_a_kept_file_with_another_byte_is_not_given_back(copied, tmp_path):
    (tmp_path / "a.csv").write_text("neuron,explanation\n0:1,dogs\n")
    copied.type("import", "csv", str(tmp_path / "a.csv"))
    table = DeltaLake(copied.lake.uri).read("imported_originals")
    shutil.rmtree(f"{copied.lake.uri}/imported_originals")
    other = table.with_columns(
        pl.col("content").bin.encode("hex").str.replace("646f6773", "63617473").str.decode("hex")
    )
    copied.lake.add("imported_originals", other.cast({"part": pl.Int32}), record={})
    said = copied.type("export", "originals", str(tmp_path / "out"))
    assert said.exit_code == 1
    assert "not as they were" in said.stderr
    assert verified(copied, "--source", "csv")[1][0][0] == "differs"


def test_results_without_latents_need_no_tokenizer_to_be_parsed_again(copied, tmp_path):
    place = tmp_path / "explanations"
    place.mkdir()
    (place / "layers.5.mlp_latent1.txt").write_text('"dogs"')
    assert copied.type("import", "delphi", str(tmp_path)).exit_code == 0
    assert verified(copied, "--source", "delphi") == (0, [("equal", "1 kept file gives the same 1 rows again")])
