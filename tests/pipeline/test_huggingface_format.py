"""The card of a dataset, and its description in Croissant."""

import json
import re

import polars as pl
import pytest

from pipeline import huggingface_format as form
from pipeline.tables import TABLES

ABOUT = {
    "subject": "gpt2", "layers": [0, 1], "date": "2026-11-27",
    "conventions": {"site": {"0": "h.0.mlp.c_proj"}, "splits": "by document", "number_format": {"dtype": "float32"}},
    "explainers": ["<script>alert(1)</script>|x"], "simulators": ["token-lookup"],
}  # fmt: skip
EXPLANATIONS = pl.DataFrame({"method": ["a", "a", "a", "b"], "missing_because": [None, "refused", None, "dead_neuron"]})
SIMULATIONS = pl.DataFrame(
    {"simulator": ["token-lookup"], "missing_because": [None]}, schema_overrides={"missing_because": pl.String}
)
SCORES = pl.DataFrame(
    {
        "method": ["a", "a", "a"], "scorer": ["ev_correlation"] * 3, "split": ["top_and_random"] * 3, "value": [0.25, 0.75, None],
        "missing_because": [None, None, "constant_simulation"],
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def card():
    return form.card(
        about=ABOUT, name='Neurons: "all" of them', licence="cc-by-4.0", rows={"scores": 3, "explanations": 4},
        splits={"explain": 10, "score": 5}, missing=form.failures(EXPLANATIONS, SIMULATIONS, SCORES), medians=form.summary(SCORES),
    )  # fmt: skip


def test_a_card_says_how_much_is_missing_and_why(card):
    assert "| explanations | a | 3 | 33.3% | the language model declined to answer (1) |" in card
    assert "| explanations | b | 1 | 100.0% | the neuron never fires on this corpus in this polarity (1) |" in card
    assert "| simulations | token-lookup | 1 | 0.0% |  |" in card


def test_a_card_gives_medians_splits_licence_and_limits(card):
    assert "| a | 2 | 0.500 | 50.0% |" in card
    assert "- `score`: 5 sequences" in card
    assert "texts in `sequences` keep the licence of the corpus" in card
    assert "## Limits" in card


def test_the_head_of_a_card_tells_the_hub_where_each_table_is(card):
    head = card.split("---")[1]
    assert 'pretty_name: "Neurons: \\"all\\" of them"' in head
    assert head.count("config_name") == 2
    assert re.search(
        r"config_name: scores\n  default: true\n  data_files:\n  - split: train\n    path: data/scores/\*\.parquet",
        head,
    )


def test_words_of_others_are_no_markup_in_a_card(card):
    assert "<script>" not in card
    assert "\\<script\\>alert(1)\\</script\\>\\|x" in card


def test_a_description_has_every_column_with_its_meaning_and_every_file_with_its_hash():
    files = [
        ("scores", "data/scores/layer-00-000.parquet", "ab" * 32, 10),
        ("sequences", "data/sequences/000.parquet", "cd" * 32, 20),
    ]
    found = form.croissant(about=ABOUT, name="n", licence="cc-by-4.0", version="1.2.0", files=files)
    objects = {one["@id"]: one for one in found["distribution"] if one["@type"] == "cr:FileObject"}
    assert objects["data/sequences/000.parquet"]["sha256"] == "cd" * 32
    records = {one["@id"]: one["field"] for one in found["recordSet"]}
    assert [one["description"] for one in records["scores"]] == [
        column.doc for column in TABLES["scores"].columns.values()
    ]
    kinds = {one["@id"]: (one["dataType"], one.get("repeated", False)) for one in records["sequences"]}
    assert kinds["sequences/token_ids"] == ("sc:Integer", True)
    assert kinds["sequences/text"] == ("sc:Text", False)
    json.dumps(found)


def test_what_names_machines_is_not_published():
    assert {"endpoint", "error"} & set(form.columns("language_calls")) == set()
    assert "materializations" not in form.PUBLISHED
