"""What counts as fresh: records of a lake, literal or drawn, against the model, text, code and choices of today."""

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets import freshness
from assets.freshness import Outside, of_neurons, states, summary
from assets.project import Choices, Project
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES

CHOICES = Choices(windows=3, length=4, seed=0, explainer=None, simulator=None)
PROJECT = Project(n_neurons=(2, 2), choices=CHOICES, code={})
# What only some scorers are made from is looked at only where they are chosen.
HOPS = {name: freshness.HOPS[name] for name in freshness.looked_at(PROJECT)}
OUTSIDE = Outside(corpus="c", tokenizer="t", weights=["w0", "w1"], checkpoint="k")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
EXPLAINING = replace(PROJECT, choices=replace(CHOICES, explainer="m", simulator="m"))
HOPS_OF_NEURONS = ("exemplars", "explanations", "simulations", "scores")


@dataclass
class Written:
    """A lake as its records tell of it: each write comes a minute after the one before."""

    project: Project = PROJECT
    outside: Outside = OUTSIDE
    records: list[dict] = field(default_factory=list)
    contents: dict[tuple[str, int | None], dict[int | None, str]] = field(default_factory=dict)
    """For each slice, what was last written for all of it (None), and for single neurons since."""
    gone: set[tuple[str, int | None]] = field(default_factory=set)
    written_by: dict[tuple[str, int | None], str | None] = field(default_factory=dict)
    """The commit that wrote a slice's rows, where it is not the one that its record names."""
    run_of: dict[tuple[str, int | None], str] = field(default_factory=dict)
    """The same of the run."""
    unanswered: dict[int, str] = field(default_factory=dict)
    """For neurons without an explanation, why."""

    def write(self, table, layer=None, *, content="a", neuron=None, failures=None, code=None, error=None):
        """Note a write that read what is in the lake now."""
        hop = HOPS[table]
        inputs = (*hop.inputs, *hop.more_inputs(self.project))
        parents = {name: self.hash(name, layer if TABLES[name].by_layer else None) for name in inputs}
        outside = freshness._outside(table, layer, self.outside)
        own = self.contents.setdefault((table, layer), {})
        if error is None:
            if neuron is None:
                own.clear()
            own[neuron] = content
        now = NOON + timedelta(minutes=len(self.records))
        self.records.append(
            {
                "commit_uuid": f"u{len(self.records)}",
                "run_id": "r",
                "table": table,
                "version": None if error else 1,
                "layer": layer,
                "neurons": None if neuron is None else [neuron],
                "step_key": None,
                "content_hash": None if error else self.hash(table, layer),
                "rows": 0 if error else 1,
                "inputs": json.dumps({name: {"content_hash": hashed} for name, hashed in {**parents, **outside}.items()}),
                "settings": json.dumps(dict(hop.settings(self.project))),
                "code": json.dumps({"code_version": code or hop.code_version}),
                "environment": "{}",
                "usage": json.dumps({"failures": failures or {}}),
                "started_at": now,
                "finished_at": now,
                "status": "failed" if error else "done",
                "error": error,
            }
        )  # fmt: skip

    def everything(self, *, layers=(0, 1)):
        for table in HOPS:
            for layer in layers if TABLES[table].by_layer else (None,):
                self.write(table, layer)
        return self

    def neuron(self, layer, neuron, *, tables=HOPS_OF_NEURONS, content="a"):
        for table in tables:
            self.write(table, layer, neuron=neuron, content=content)
        return self

    def found(self, *, project=PROJECT, outside=OUTSIDE, layers=(0, 1)):
        return {(state.table, state.layer): state for state in states(self, project, outside, layers=layers)}

    def causes(self, **today):
        """Of each slice that is not fresh, its status and cause."""
        return {
            at: f"{state.status}: {state.cause}" for at, state in self.found(**today).items() if state.status != "fresh"
        }

    # The lake, as far as freshness looks

    def slices(self, table):
        made = [row for row in self.records if row["table"] == table and row["status"] == "done"]
        return {
            row["layer"]: (1, frozenset([self.written_by.get((table, row["layer"]), row["commit_uuid"])]))
            for row in made
            if (table, row["layer"]) not in self.gone
        }

    def run_ids(self, table, *, layer=None):
        return {self.run_of.get((table, layer), "r")}

    def scan(self, table, *, layer=None):
        rows = {"neuron": [0, 1], "missing_because": [self.unanswered.get(neuron) for neuron in (0, 1)]}
        empty = {name: [] for name in rows}
        return pl.LazyFrame(
            rows if table == "explanations" else empty, schema={"neuron": pl.Int32, "missing_because": pl.String}
        )

    def read(self, table, *, layer=None, neurons=None, version=None):
        if table == "materializations":
            return pl.DataFrame(self.records, schema=TABLES[table].schema, orient="row")
        return self.frame(table, layer)

    def frame(self, table, layer):
        """A slice as rows that differ by content only."""
        own = self.contents.get((table, layer), {})
        now = {neuron: content for neuron, content in own.items() if content != own.get(None)} | {-1: own.get(None, "")}
        rows = pl.DataFrame({"neuron": sorted(now), "content": [now[neuron] for neuron in sorted(now)]})
        return rows.with_columns(**{name: pl.lit("") for name in TABLES[table].key if name not in rows.columns})

    def hash(self, table, layer):
        return frame_hash(self.frame(table, layer), key=TABLES[table].key)


@pytest.fixture
def made():
    return Written().everything()


def below(*tables):
    """The tables that are made from these, however far."""
    found = set(tables)
    for name, hop in HOPS.items():
        if found & set(hop.inputs):
            found.add(name)
    return found


def test_in_an_empty_lake_everything_is_missing():
    found = Written().found()
    assert set(found) == {
        ("sequences", None),
        ("vocabulary", None),
        *((name, layer) for name in HOPS if TABLES[name].by_layer for layer in (0, 1)),
    }
    assert {(state.status, state.cause) for state in found.values()} == {("missing", "")}


def test_what_was_made_as_it_would_be_today_is_fresh(made):
    assert made.causes() == {}


def test_only_the_layers_that_are_asked_about_are_looked_at(made):
    assert {layer for _, layer in made.found(layers=[1])} == {None, 1}


@pytest.mark.parametrize(
    ("outside", "slice_", "cause"),
    [
        (replace(OUTSIDE, corpus="d"), ("sequences", None), "stale: the corpus changed"),
        (replace(OUTSIDE, weights=["w0", "v1"]), ("subject_layers", 1), "stale: the weights changed"),
    ],
)
def test_what_changed_outside_makes_stale_all_that_is_made_from_it(made, outside, slice_, cause):
    table, layer = slice_
    causes = made.causes(outside=outside)
    assert causes[slice_] == cause
    assert set(causes) == {slice_} | {
        (name, at) for name in below(table) - {table} for at in ((0, 1) if layer is None else (layer,))
    }


def test_another_tokenizer_makes_stale_the_text_and_what_is_made_from_it_and_the_vocabulary(made):
    causes = made.causes(outside=replace(OUTSIDE, tokenizer="u"))
    changed = {("sequences", None), ("vocabulary", None)}
    assert {at for at, cause in causes.items() if cause == "stale: the tokenizer changed"} == changed
    assert set(causes) == changed | {(name, at) for name in below("sequences") - {"sequences"} for at in (0, 1)}


def test_a_weight_that_reaches_no_neuron_makes_stale_the_connections_of_every_layer_and_nothing_else(made):
    cause = "stale: the checkpoint changed"
    assert made.causes(outside=replace(OUTSIDE, checkpoint="l")) == {
        ("connections", 0): cause,
        ("connections", 1): cause,
    }


def test_connections_and_a_vocabulary_that_were_never_made_leave_everything_else_fresh(made):
    made.records = [record for record in made.records if record["table"] not in ("connections", "vocabulary")]
    assert made.causes() == dict.fromkeys([("vocabulary", None), ("connections", 0), ("connections", 1)], "missing: ")


def test_a_setting_makes_stale_the_tables_that_depend_on_it_and_what_is_made_from_them(made):
    causes = made.causes(project=replace(PROJECT, choices=replace(CHOICES, windows=9)), layers=[0])
    assert causes["sequences", None] == "stale: setting `windows` changed from 3 to 9"
    assert causes["activations", 0] == "stale: sequences is stale"
    assert ("subject_layers", 0) not in causes


def test_an_explainer_makes_stale_what_it_says_and_nothing_before_that(made):
    causes = made.causes(project=EXPLAINING, layers=[0])
    assert set(causes) == {("explanations", 0), ("simulations", 0), ("scores", 0)}
    assert causes["explanations", 0] == "stale: setting `explainer` changed from None to m"


def test_rows_with_more_than_is_asked_for_are_fresh():
    assert Written(project=EXPLAINING).everything().causes() == {}


def test_whatever_is_stale_says_where_that_began(made):
    found = made.found(outside=replace(OUTSIDE, weights=["w0", "v1"]))
    assert {state.root for at, state in found.items() if at[1] == 1 and state.inherited} == {"the weights changed"}
    assert not any(state.root for state in found.values() if not state.inherited)


def test_new_code_makes_its_table_stale(made):
    made.write("exemplars", 0, code="0")
    assert (
        made.causes()["exemplars", 0] == f"stale: its code changed from version 0 to {HOPS['exemplars'].code_version}"
    )
    assert made.causes()["scores", 0] == "stale: simulations is stale"


def test_a_parent_that_came_out_otherwise_makes_its_children_stale_and_one_that_came_out_the_same_does_not(made):
    made.write("activations", 0)
    assert made.causes() == {}
    made.write("activations", 0, content="b")
    causes = made.causes()
    assert causes["exemplars", 0] == "stale: activations changed"
    assert set(causes) == {(name, 0) for name in below("exemplars")}
    made.write("exemplars", 0)
    assert made.causes() == {}


def test_a_slice_that_failed_says_why_until_it_is_made(made):
    made.write("simulations", 1, error="LakeError: the disk is full")
    assert made.causes() == {
        ("simulations", 1): "failed: LakeError: the disk is full",
        ("scores", 1): "stale: simulations is failed",
    }
    made.write("simulations", 1)
    assert made.causes() == {}


def test_rows_of_a_write_that_was_killed_before_its_record_are_stale(made):
    made.written_by["exemplars", 1] = "killed"
    assert made.causes()["exemplars", 1] == "stale: it holds rows of a write that was never finished"


def test_rows_that_others_laid_out_anew_are_known_by_their_run(made):
    made.written_by["exemplars", 1] = None
    assert made.causes() == {}
    made.run_of["exemplars", 1] = "killed"
    assert made.causes()["exemplars", 1] == "stale: it holds rows of a write that was never finished"


def test_a_slice_whose_rows_are_gone_is_missing(made):
    made.gone.add(("activations", 1))
    assert made.causes()["activations", 1] == "missing: its 1 rows are gone"
    assert made.causes()["exemplars", 1] == "stale: activations is missing"


def test_answers_that_may_come_tomorrow_are_asked_for_again_and_those_that_came_are_not():
    made = Written(project=EXPLAINING).everything()
    made.write("explanations", 0, failures={"refused": 2, "unparsable": 1})
    assert made.causes(project=EXPLAINING) == {}
    made.write("explanations", 0, failures={"refused": 2, "timeout": 3})
    assert made.causes(project=EXPLAINING)["explanations", 0] == "stale: 3 answers are missing (timeout)"
    # What is not asked for today need not be answered.
    assert made.causes() == {}


def test_a_neuron_made_again_with_the_same_outcome_leaves_everything_fresh(made):
    made.neuron(0, 1)
    assert made.causes() == {}
    alone = {at: state.recomputed for at, state in made.found().items() if state.recomputed}
    assert alone == {(name, 0): (1,) for name in HOPS_OF_NEURONS}


def test_a_neuron_made_again_with_another_outcome_leaves_everything_fresh_once_all_its_tables_are_made(made):
    made.neuron(0, 1, content="b")
    assert made.causes() == {}


def test_a_neuron_made_again_halfway_makes_stale_what_was_not_made(made):
    made.neuron(0, 1, tables=["exemplars"], content="b")
    assert made.causes()["explanations", 0] == "stale: exemplars of neuron 0:1 was recomputed"
    assert set(made.causes()) == {(name, 0) for name in below("explanations")}
    made.neuron(0, 1, tables=["explanations", "simulations", "scores"], content="b")
    assert made.causes() == {}


def test_a_layer_made_again_forgets_that_a_neuron_was_made_alone(made):
    made.neuron(0, 1, content="b")
    for name in HOPS_OF_NEURONS:
        made.write(name, 0)
    assert made.causes() == {}
    assert not any(state.recomputed for state in made.found().values())


def test_a_neuron_made_again_halfway_is_stale_alone(made):
    made.neuron(0, 1, tables=["exemplars"], content="b")
    found = of_neurons(made, PROJECT, OUTSIDE, layer=0)
    assert found.rows() == [
        (0, "fresh", "", False),
        (1, "stale", "exemplars of neuron 0:1 was recomputed", True),
    ]
    assert of_neurons(made, PROJECT, OUTSIDE, layer=1)["status"].to_list() == ["fresh", "fresh"]


def test_a_neuron_whose_answer_may_come_tomorrow_failed_and_no_other(made):
    made.unanswered = {1: "timeout"}
    found = of_neurons(made, PROJECT, OUTSIDE, layer=0)
    assert found.rows()[1] == (1, "failed", "1 answers are missing (timeout)", False)
    assert found["status"].to_list() == ["fresh", "failed"]


def test_a_neuron_made_with_another_setting_is_named(made):
    made.project = replace(PROJECT, choices=replace(CHOICES, seed=5))
    made.neuron(0, 1)
    made.project = PROJECT
    assert made.causes() == {
        ("scores", 0): "stale: neuron 0:1 was recomputed, and since then setting `seed` changed from 5 to 0"
    }


ANYWHERE = st.sampled_from([(name, layer) for name in HOPS for layer in ((0, 1) if TABLES[name].by_layer else (None,))])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(ANYWHERE, st.sampled_from("ab"), st.booleans()), max_size=6))
def test_whatever_happened_making_what_is_not_fresh_in_order_makes_all_fresh(history):
    lake = Written().everything()
    for (table, layer), content, fails in history:
        lake.write(table, layer, content=content, error="LakeError: no" if fails else None)
    for at in lake.found():
        if lake.found()[at].status != "fresh":
            lake.write(*at)
    assert lake.causes() == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(ANYWHERE, st.sampled_from("ab"), st.booleans()), max_size=6))
def test_nothing_fresh_is_made_from_what_is_not(history):
    lake = Written().everything()
    for (table, layer), content, fails in history:
        lake.write(table, layer, content=content, error="LakeError: no" if fails else None)
    found = lake.found()
    for (table, layer), state in found.items():
        parents = [found[name, layer if TABLES[name].by_layer else None] for name in HOPS[table].inputs]
        if state.status == "fresh":
            assert {parent.status for parent in parents} <= {"fresh"}


@pytest.mark.parametrize(
    ("methods", "expected"),
    [(("highlight",), set()), (("highlight", "token-space-weights"), below("explanations"))],
)
def test_explanations_are_made_from_the_weights_only_if_a_method_shows_them(methods, expected):
    project = replace(PROJECT, choices=replace(PROJECT.choices, explainer="m", methods=methods))
    lake = Written(project=project).everything()
    assert lake.causes(project=project) == {}
    lake.write("connections", 0, content="b")
    assert set(lake.causes(project=project)) == {(table, 0) for table in expected}


def test_the_states_are_a_table_of_plain_columns(made):
    made.neuron(0, 1)
    rows = summary(list(made.found().values()))
    assert rows.columns == ["table", "layer", "status", "cause", "recomputed", "root"]
    assert rows.row(0) == ("sequences", None, "fresh", "", [], "")
    assert rows.filter(table="scores", layer=0).row(0) == ("scores", 0, "fresh", "", [1], "")
