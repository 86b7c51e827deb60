"""What Dagster loads: assets, partitions, checks and jobs, and what each says of itself."""

import runpy

import dagster as dg
import pytest

from assets import dataset_release, definitions
from assets.project import layer_key, neuron_name, parse_key
from pipeline.checks import names
from pipeline.errors import SettingsError
from pipeline.tables import TABLES
from pipeline.testing import planted_checkpoint, planted_corpus
from resources.settings import load

LAYER_TABLES = (
    "activations",
    "neuron_statistics",
    "token_associations",
    "connections",
    "exemplars",
    "explanations",
    "simulations",
    "scores",
)
NEURON_TABLES = ("exemplars", "explanations", "simulations", "scores")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    home = tmp_path_factory.mktemp("definitions")
    planted_checkpoint(home / "subject")
    (home / "corpus.txt").write_text("\n".join(planted_corpus(2, seed=1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURONLEDGER_HOME", str(home))
        patch.setenv("HF_HUB_OFFLINE", "1")
        settings = load(subject=str(home / "subject"), corpus=str(home / "corpus.txt"))
        yield definitions.build(settings)
    # Nothing is made by looking.
    assert sorted(path.name for path in home.iterdir()) == ["corpus.txt", "subject"]


@pytest.fixture(scope="module")
def specs(built):
    return {spec.key.to_user_string(): spec for spec in built.resolve_all_asset_specs()}


def test_dagster_can_load_them(built):
    dg.Definitions.validate_loadable(built)


def test_settings_are_read_when_dagster_asks_and_not_on_import(monkeypatch):
    monkeypatch.setenv("NEURONLEDGER_WINDOWS", "0")
    module = runpy.run_path(definitions.__file__)
    with pytest.raises(SettingsError, match="NEURONLEDGER_WINDOWS"):
        module["defs"]()


def test_each_table_is_an_asset_and_those_of_one_neuron_are_too(specs):
    assert set(specs) == {
        "sequences",
        "subject_layers",
        "vocabulary",
        *LAYER_TABLES,
        "layer_summary",
        *(f"neuron_{table}" for table in NEURON_TABLES),
        "dataset_release",
        *(f"import_{form}" for form in ("openai", "neuronpedia", "delphi", "csv", "jsonl")),
        "common_simulations",
        "common_scores",
    }


def test_every_asset_says_what_it_is_where_it_belongs_and_who_looks_after_it(specs):
    for name, spec in specs.items():
        assert spec.description
        of_one_neuron = name.startswith("neuron_") and name != "neuron_statistics"
        if name.startswith("common_"):
            assert spec.group_name == "imports"
        elif not name.startswith("import_") and name != "dataset_release":
            assert spec.group_name == ("neuron" if of_one_neuron else "layers")
        assert spec.code_version
        assert spec.kinds
        assert spec.owners


def test_every_asset_of_a_table_shows_the_columns_that_the_table_declares(specs):
    for name, spec in specs.items():
        if name in ("layer_summary", "dataset_release") or name.startswith("import_"):
            continue
        table = name if name in TABLES else name.removeprefix("neuron_")
        columns = spec.metadata["dagster/column_schema"].columns
        assert [(column.name, column.description) for column in columns] == [
            (column, declared.doc) for column, declared in TABLES[table].columns.items()
        ]


def test_every_table_has_its_checks_and_all_of_them_block(built):
    graph = built.resolve_asset_graph()
    found = {}
    for key in graph.asset_check_keys:
        found.setdefault(key.asset_key.to_user_string(), set()).add(key.name)
        assert graph.get_check_spec(key).blocking
    tables = {name: name for name in ("sequences", "subject_layers", "vocabulary", *LAYER_TABLES)}
    tables |= {f"neuron_{name}": name for name in NEURON_TABLES}
    assert found.pop("dataset_release") == set(dataset_release.CHECKS)
    assert found == {asset: set(names(table)) for asset, table in tables.items()}


def test_layers_and_neurons_are_partitions_with_keys_that_sort(built):
    graph = built.resolve_asset_graph()
    layers = graph.get(dg.AssetKey("scores")).partitions_def
    assert layers.get_partition_keys() == ["L00", "L01"]
    neurons = graph.get(dg.AssetKey("neuron_scores")).partitions_def
    assert len(neurons.get_partition_keys()) == 2 * 8
    assert neurons.has_partition_key(dg.MultiPartitionKey({"layer": "L01", "neuron": "N0007"}))
    assert str(dg.MultiPartitionKey({"layer": "L01", "neuron": "N0007"})) == neuron_name(1, 7) == "L01|N0007"


def test_a_key_gives_back_what_it_was_made_from():
    for layer, neuron in ((0, 0), (5, 131), (47, 6399), (120, 28671)):
        assert parse_key(neuron_name(layer, neuron)) == (layer, neuron)
        assert parse_key(layer_key(layer)) == (layer, None)


def test_two_jobs_stand_ready(built):
    jobs = {job.name: job for job in built.resolve_all_job_defs() if not job.name.startswith("__")}
    assert set(jobs) == {"explain_layer", "explain_neuron"}
    assert {key.to_user_string() for key in jobs["explain_neuron"].asset_layer.selected_asset_keys} == {
        f"neuron_{table}" for table in NEURON_TABLES
    }
    assert {key.to_user_string() for key in jobs["explain_layer"].asset_layer.selected_asset_keys} == set(NEURON_TABLES)
    assert all(job.description for job in jobs.values())


@pytest.mark.parametrize("name", ["activations", "connections"])
def test_the_model_is_loaded_once_for_all_layers_that_are_asked_for(built, name):
    asset = built.resolve_asset_graph().get(dg.AssetKey(name))
    assert asset.backfill_policy == dg.BackfillPolicy.single_run()


def test_connections_and_the_vocabulary_need_no_text(built):
    graph = built.resolve_asset_graph()
    assert graph.get(dg.AssetKey("vocabulary")).parent_keys == set()
    assert graph.get(dg.AssetKey("connections")).parent_keys == {dg.AssetKey("subject_layers")}
