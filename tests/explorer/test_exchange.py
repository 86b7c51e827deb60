"""Commands that write a lake for other tools."""

import hashlib
import json
import shutil

import polars as pl
import pytest

from pipeline.tables import TABLES
from resources.people import statements


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("form", ["openai", "csv"])
def test_the_same_lake_gives_the_same_files(made, tmp_path, form):
    one, two = tmp_path / "one", tmp_path / "two"
    assert made.type("export", form, str(one)).exit_code == 0
    assert made.type("export", form, str(two)).exit_code == 0
    assert digests(one) == digests(two)


def test_an_export_for_openai_holds_every_captured_neuron_and_says_what_it_lacks(made, tmp_path):
    result = made.type("export", "openai", str(tmp_path / "out"), "--layers", "1", "--json")
    about = json.loads(result.stdout)
    neurons = made.table("neuron_statistics", layer=1).get_column("neuron").to_list()
    found = sorted(int(path.stem) for path in (tmp_path / "out" / "collated-activations" / "1").iterdir())
    assert found == neurons
    assert about["layers"] == [1]
    assert about["conventions"]["splits"] == "by document"
    assert about == json.loads((tmp_path / "out" / "neuronledger.json").read_text())
    assert not (tmp_path / "out" / "collated-activations" / "0").exists()
    lines = (tmp_path / "out" / "provenance" / "1.jsonl").read_text().splitlines()
    assert [json.loads(line)["neuron"] for line in lines] == neurons


@pytest.mark.parametrize("form", ["openai", "neuronpedia", "huggingface", "csv"])
def test_what_an_export_cannot_carry_is_printed_line_by_line(made, tmp_path, form):
    said = made.type("export", form, str(tmp_path / "out"), "--layers", "0")
    about = json.loads((tmp_path / "out" / "neuronledger.json").read_text())
    assert about["not_carried"]
    _, _, printed = said.stdout.partition("What the format has no field for:\n")
    assert printed.splitlines() == [f"  - {line}" for line in about["not_carried"]]


def test_a_folder_that_is_there_is_left_alone(made, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    said = made.type("export", "openai", str(tmp_path / "mine"))
    assert said.exit_code == 2
    assert "is no export" in said.stderr


def test_a_lake_without_neurons_and_a_layer_that_is_not_there_are_said(made, tmp_path):
    said = made.type("export", "openai", str(tmp_path / "out"), "--lake", str(tmp_path / "empty"))
    assert said.exit_code == 1
    assert "has no captured neurons" in said.stderr
    said = made.type("export", "openai", str(tmp_path / "out"), "--layers", "7")
    assert said.exit_code == 2
    assert "there is no 7" in said.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    assert made.type("export", "openai", str(folder)).exit_code == 0
    return folder


def test_what_was_exported_is_imported_beside_ours_and_scores_as_it_did(copied, exported):
    before = copied.contents()
    result = copied.type("import", "openai", str(exported), "--convention", "number_format=float32", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["rejected"] == []
    assert said["conventions"]["number_format"] == "float32"
    assert {name: value for name, value in copied.contents().items() if value != before[name]}.keys() <= {
        name for name in before if name.startswith("import")
    }
    assert copied.not_fresh() == {}
    ours = copied.table("explanations").drop_nulls("text").select("layer", "neuron", "text")
    theirs = copied.table("imported_explanations").select("layer", "neuron", "text")
    assert sorted(theirs.rows()) == sorted(ours.rows())
    assert set(copied.table("imported_scores").get_column("scorer")) == {
        "openai:ev_correlation", "openai:rsquared", "openai:absolute_dev_explained"
    }  # fmt: skip
    files = copied.table("imported_files")
    one = files.row(0, named=True)
    assert one["sha256"] == "sha256:" + hashlib.sha256((exported / one["path"]).read_bytes()).hexdigest()

    assert "in the table `common_scores`" in copied.type("import", "scores").stdout
    at = ["layer", "neuron", "scorer", "split"]
    lookup = copied.table("scores").filter(pl.col("method") == "token-lookup").drop_nulls("value")
    again = copied.table("common_scores").filter(pl.col("simulator") == "unknown")
    both = lookup.join(again, on=at, suffix="_again")
    assert len(both) == len(lookup)
    assert both.get_column("value").to_list() == pytest.approx(both.get_column("value_again").to_list(), abs=1e-6)


def test_an_import_again_changes_nothing_and_another_source_stands_beside_it(copied, exported):
    for source in ("one", "two", "one"):
        assert copied.type("import", "openai", str(exported / "explanations" / ".."), "--source", source).exit_code == 0
    counts = copied.table("imported_records").group_by("source").len().sort("source")
    assert counts.get_column("source").to_list() == ["one", "two"]
    assert counts.get_column("len").n_unique() == 1
    assert copied.table("imports").get_column("source").sort().to_list() == ["one", "two"]


def test_bad_files_are_named_with_the_place_and_do_not_stop_the_rest(copied, exported, tmp_path):
    shutil.copytree(exported / "explanations" / "0", tmp_path / "explanations" / "0")
    some = sorted((tmp_path / "explanations" / "0").iterdir())
    some[0].write_text('{"neuron_id": }')
    result = copied.type("import", "openai", str(tmp_path))
    assert result.exit_code == 3
    assert f"rejected explanations/0/{some[0].name}, at 14: no JSON" in result.stderr
    assert copied.table("imported_explanations").get_column("neuron").n_unique() == len(some) - 1
    rejected = copied.table("imported_files").filter(pl.col("status") == "rejected")
    assert rejected.select("path", "offset_in_file").rows() == [(f"explanations/0/{some[0].name}", 14)]


def test_a_file_that_is_bad_this_time_takes_away_nothing_that_was_taken_before(copied, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "in")
    assert copied.type("import", "openai", str(tmp_path / "in")).exit_code == 0
    names = ("imported_records", "imported_explanations", "imported_simulations", "imported_scores")
    before = {name: len(copied.table(name)) for name in names}
    some = sorted((tmp_path / "in" / "explanations" / "0").iterdir())
    some[0].write_text('{"neuron_id": }')
    said = json.loads(some[1].read_text())
    said["scored_explanations"][0]["scored_simulation"]["scored_sequence_simulations"][0]["simulation"][
        "activation_scale"
    ] = []
    some[1].write_text(json.dumps(said))
    result = copied.type("import", "openai", str(tmp_path / "in"))
    assert (result.exit_code, result.stderr.count("rejected")) == (3, 2)
    assert "activation_scale" in result.stderr
    assert {name: len(copied.table(name)) for name in names} == before


def test_wrong_use_of_an_import_is_said(made, tmp_path):
    said = made.type("import", "openai", str(tmp_path))
    assert (said.exit_code, "holds no files of the form" in said.stderr) == (2, True)
    said = made.type("import", "openai", str(tmp_path), "--source", "A B")
    assert (said.exit_code, "must be small letters" in said.stderr) == (2, True)
    said = made.type("import", "openai", str(tmp_path), "--convention", "colour=red")
    assert (said.exit_code, "with one of the names site" in said.stderr) == (2, True)


@pytest.fixture(scope="module")
def published(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "out"
    result = made.type("export", "huggingface", str(folder), "--license", "cc-by-4.0")
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.mark.parametrize("table", ["scores", "exemplars", "sequences", "vocabulary"])
def test_a_published_table_is_the_table(made, published, table):
    rows = pl.read_parquet(published / "data" / table / "*.parquet")
    declared = TABLES[table]
    assert declared.conform(rows).equals(made.table(table))


def test_the_same_lake_is_published_with_the_same_bytes(made, published, tmp_path):
    made.type("export", "huggingface", str(tmp_path / "again"), "--license", "cc-by-4.0")
    assert digests(tmp_path / "again") == digests(published)


def test_the_description_of_a_dataset_has_the_hash_of_each_of_its_files(published):
    found = json.loads((published / "croissant.json").read_text())
    named = {one["contentUrl"]: one["sha256"] for one in found["distribution"] if "sha256" in one}
    assert named == {name: digest for name, digest in digests(published).items() if name.startswith("data/")}


# mlcroissant uses what rdflib and pandas call old.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_description_is_valid_and_its_records_can_be_read(published):
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(jsonld=published / "croissant.json")
    assert not dataset.metadata.issues.errors
    first = next(iter(dataset.records(record_set="scores")))
    assert first["scores/layer"] == 0


def test_the_hub_library_loads_each_table(published, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(str(published), "scores", split="train", cache_dir=str(tmp_path))
    assert len(rows) == len(pl.read_parquet(published / "data" / "scores" / "*.parquet"))


def test_the_card_is_one_that_the_hub_reads(published):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.DatasetCard.load(published / "README.md").data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["configs"][0]["config_name"] == "scores"


def test_what_is_written_as_csv_is_what_the_tables_hold(made, tmp_path):
    assert made.type("export", "csv", str(tmp_path / "out"), "--layers", "0").exit_code == 0
    rows = pl.read_csv(tmp_path / "out" / "explanations.csv", infer_schema=False)
    ours = made.table("explanations", layer=0)
    assert rows.columns[:3] == ["neuron", "explanation", "author"]
    assert rows.get_column("neuron").to_list() == [f"0:{neuron}" for neuron in ours.get_column("neuron")]
    assert rows.get_column("explanation").to_list() == ours.get_column("text").to_list()
    scores = pl.read_csv(tmp_path / "out" / "scores.csv", schema_overrides={"value": pl.Float64})
    assert scores.get_column("value").to_list() == made.table("scores", layer=0).get_column("value").to_list()


def test_what_people_wrote_is_imported_with_their_scores_and_wrong_lines_are_named(copied, tmp_path):
    (tmp_path / "mine.csv").write_text("neuron,explanation,author,score\n0:1,dogs,ann,0.5\nx,cats,bob,1\n")
    result = copied.type("import", "csv", str(tmp_path / "mine.csv"), "--source", "people")
    assert result.exit_code == 3
    assert "rejected mine.csv: line 3: neuron must be such as 5:131" in result.stderr
    row = copied.table("imported_explanations").row(0, named=True)
    assert (row["source"], row["text"], row["explainer"]) == ("people", "dogs", "ann")
    assert copied.table("imported_scores").item(0, "scorer") == "csv:score"
    (tmp_path / "words.csv").write_text(copied.type("import", "words", "--source", "people").stdout)
    (statement,) = statements(tmp_path / "words.csv")
    assert (statement.layer, statement.neuron, statement.text, statement.author) == (0, 1, "dogs", "ann")
    assert copied.type("import", "words", "--source", "nobody").exit_code == 2


def test_rows_of_one_neuron_in_several_batches_are_all_kept(copied, tmp_path):
    folder = tmp_path / "v1" / "m" / "0"
    for kind, batch, row in (
        ("explanations", 0, {"description": "dogs"}), ("explanations", 1, {"description": "cats"}),
        ("activations", 1, {"tokens": [" a"], "values": [1.5]}), ("features", 0, {"maxActApprox": 1.5}),
    ):  # fmt: skip
        (folder / kind).mkdir(parents=True, exist_ok=True)
        line = json.dumps({"layer": "0", "index": "3", **row})
        (folder / kind / f"batch-{batch}.jsonl").write_text(line + "\n")
    result = copied.type("import", "neuronpedia", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert sorted(copied.table("imported_explanations").get_column("text")) == ["cats", "dogs"]
    assert len(copied.table("imported_records")) == len(copied.table("imported_neurons")) == 1


def test_an_export_for_neuronpedia_comes_back_and_has_the_same_bytes_again(copied, made, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    said = made.type("export", "neuronpedia", str(one), "--model", "planted", "--json")
    assert said.exit_code == 0, said.stderr
    made.type("export", "neuronpedia", str(two), "--model", "planted")
    assert digests(one) == digests(two)
    assert (one / "v1" / "planted" / "0" / "features" / "batch-0.jsonl.gz").exists()
    requests = [json.loads(path.read_text()) for path in (one / "upload").rglob("*.json")]
    assert all(1 <= len(body["features"]) <= 128 and body["modelId"] == "planted" for body in requests)
    result = copied.type("import", "neuronpedia", str(one))
    assert result.exit_code == 0, result.stderr
    ours = made.table("explanations").drop_nulls("text").select("layer", "neuron", "text")
    theirs = copied.table("imported_explanations").select("layer", "neuron", "text")
    assert sorted(theirs.rows()) == sorted(ours.rows())


def test_a_model_name_that_neuronpedia_would_refuse_is_said(made, tmp_path):
    said = made.type("export", "neuronpedia", str(tmp_path / "out"), "--model", "GPT 2")
    assert (said.exit_code, "must be small letters" in said.stderr) == (2, True)


def test_a_release_is_a_dataset_with_what_it_was_made_from_and_comes_once(copied):
    # Whether this checkout was changed is a finding (A18).
    result = copied.type("release", "1.0.0", "--license", "cc-by-4.0", "--unaudited")
    assert result.exit_code == 0, result.stderr
    assert "all tables are fresh" in result.stdout
    folder = copied.home / "releases" / "subject" / "1.0.0"
    said = json.loads((folder / "release.json").read_text())
    # The record of the release itself comes after it.
    assert said["ledger_head"] in (copied.home / "lake" / "subject" / "_ledger" / "ledger.jsonl").read_text()
    assert said["sha256"] == {name: digest for name, digest in digests(folder).items() if name.startswith("data/")}
    assert {line.partition(":")[0] for line in said["audit"]["against"]} <= {"A18"}
    assert {"A3", "A4", "A5", "A12", "A14", "A15"} <= set(said["audit"]["clean"])
    assert (folder / "README.md").exists()
    record = copied.table("materializations").filter(pl.col("table") == "dataset_release").row(0, named=True)
    assert json.loads(record["settings"]) == {"version": "1.0.0", "licence": "cc-by-4.0"}
    again = copied.type("release", "1.0.0")
    assert (again.exit_code, "was released already" in again.stderr) == (2, True)
    assert copied.not_fresh() == {}


def test_stale_tables_are_not_released_unless_asked_and_then_named(copied):
    (copied.home / "corpus.jsonl").write_text('{"text": "another corpus, quite another one"}\n')
    refused = copied.type("release", "1.0.0", "--quick", "--unaudited")
    assert refused.exit_code == 1
    assert "not released, because not all tables are fresh: sequences is stale" in refused.stderr
    assert not (copied.home / "releases").exists() or not any((copied.home / "releases" / "subject").iterdir())
    told = copied.type("release", "1.0.0", "--stale", "--quick", "--unaudited")
    assert told.exit_code == 0, told.stderr
    said = json.loads((copied.home / "releases" / "subject" / "1.0.0" / "release.json").read_text())
    assert said["not_fresh"][0].startswith("sequences is stale")


def test_tables_that_an_audit_finds_changed_are_not_released_unless_asked_and_then_named(copied):
    file = next((copied.home / "lake" / "subject" / "scores" / "layer=0").glob("*.parquet"))
    file.write_bytes(file.read_bytes().replace(b"token-lookup", b"token-hookup"))
    refused = copied.type("release", "1.0.0", "--quick")
    assert (refused.exit_code, "not released, because A4: " in refused.stderr) == (1, True)
    assert not any((copied.home / "releases").rglob("*.json"))
    assert copied.type("release", "1.0.0", "--quick", "--unaudited").exit_code == 0
    said = json.loads((copied.home / "releases" / "subject" / "1.0.0" / "release.json").read_text())
    assert said["audit"]["against"][0].startswith("A4: ")
    summary = (copied.home / "releases" / "subject" / "1.0.0" / "SUMMARY.md").read_text()
    assert "NOT audited, or with findings" in summary


def test_a_lake_with_imports_is_audited_like_any_other(copied, exported):
    for source in ("one", "two"):
        assert copied.type("import", "openai", str(exported), "--source", source).exit_code == 0
    assert copied.type("run", "--stage", "scores").exit_code == 0
    assert copied.type("run", "--stage", "scores", "--neurons", "0:1,1:2").exit_code == 0
    found = json.loads(copied.type("audit", "--quick", "--json").stdout)
    assert [line for check in found["checks"] if check["id"] != "A18" for line in check["findings"]] == []


def test_a_version_is_three_numbers(made):
    said = made.type("release", "newest")
    assert (said.exit_code, "such as 1.0.0" in said.stderr) == (2, True)
