"""Controls: the words for another neuron, drawn by a seed, or none at all; and nothing where nothing can be said."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.controls import EMPTY, NOBODY, RANDOM, empty_explanations, random_explanations
from pipeline.tables import TABLES


def said(*rows):
    """Explanations of layer 0 from (neuron, polarity, method, text or the reason why there is none)."""
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    filled = [
        {
            "layer": 0, "neuron": neuron, "polarity": polarity, "explanation_id": f"{neuron}{polarity}{method}",
            "method": method, "explainer": "m", "text": None if text == "dead_neuron" else text,
            "missing_because": "dead_neuron" if text == "dead_neuron" else None, "exemplar_ids": ["x"],
            "identity": f"sha256:{neuron}{polarity}{method}",
        }
        for neuron, polarity, method, text in rows
    ]  # fmt: skip
    return pl.DataFrame(filled, schema=schema)


MANY = said(*((neuron, "+", "highlight", f"words {neuron}") for neuron in range(20)))


@given(st.integers(0, 2**32 - 1))
def test_each_neuron_gets_the_words_of_another_one(seed):
    found = random_explanations(MANY, MANY, source="highlight", seed=seed)
    assert len(found) == 20
    for row in found.iter_rows(named=True):
        assert row["text"] != f"words {row['neuron']}"
        assert row["parent_id"] == f"{row['text'].split()[1]}+highlight"
        assert (row["method"], row["request_id"], row["exemplar_ids"]) == (RANDOM, None, [])
    assert found["explanation_id"].n_unique() == 20


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_rows():
    one = random_explanations(MANY, MANY, source="highlight", seed=0)
    assert one.equals(random_explanations(MANY, MANY.reverse(), source="highlight", seed=0))
    assert not one["text"].equals(random_explanations(MANY, MANY, source="highlight", seed=1)["text"])


def test_a_neuron_alone_draws_what_it_draws_among_all():
    all_of_them = random_explanations(MANY, MANY, source="highlight", seed=0)
    alone = random_explanations(MANY.filter(neuron=7), MANY, source="highlight", seed=0)
    assert alone.equals(all_of_them.filter(neuron=7))


def test_the_other_side_of_a_neuron_is_no_other_neuron():
    both = said((0, "+", "highlight", "up"), (0, "-", "highlight", "down"))
    found = random_explanations(both, both, source="highlight", seed=0)
    assert found["missing_because"].to_list() == ["no_evidence", "no_evidence"]


def test_only_the_words_of_the_first_method_count_and_the_dead_stay_dead():
    rows = said((0, "+", "highlight", "up"), (1, "+", "summary", "down"), (2, "+", "highlight", "dead_neuron"))
    found = random_explanations(rows, rows, source="highlight", seed=0)
    assert found.select("neuron", "text", "missing_because").rows() == [
        (0, None, "no_evidence"), (2, None, "dead_neuron"),
    ]  # fmt: skip


def test_the_empty_explanation_is_one_of_no_words_for_every_neuron_that_fires():
    baselines = said(
        (0, "+", "token-lookup", "tokens"), (0, "+", "token-linear", "x"), (1, "-", "token-lookup", "dead_neuron")
    )
    found = empty_explanations(baselines)
    assert found.select("neuron", "polarity", "method", "explainer", "text", "missing_because").rows() == [
        (0, "+", EMPTY, NOBODY, "", None), (1, "-", EMPTY, NOBODY, None, "dead_neuron"),
    ]  # fmt: skip
    assert found["explanation_id"].n_unique() == 2
    TABLES["explanations"].conform(found.with_columns(run_id=pl.lit("r")))
