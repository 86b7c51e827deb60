"""One Dagster run: what it makes, and in which words it fails; and layers as ranges of neighbours."""

import signal
from itertools import pairwise
from types import SimpleNamespace

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.run import Outcome, Runner, contiguous, materialize, named
from pipeline.errors import LakeError, NeuronLedgerError

LAYERS = dg.StaticPartitionsDefinition(["L00", "L01", "L02"])


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def definitions(*assets):
    return dg.Definitions(assets=assets, executor=dg.in_process_executor)


def one(work, **options):
    """Definitions of one asset that does something, and of one after it."""

    @dg.asset(**options)
    def scores(context: dg.AssetExecutionContext):
        return work(context)

    @dg.asset(deps=[scores])
    def later():
        pass

    return definitions(scores, later)


def test_layers_are_split_where_one_is_left_out():
    assert contiguous([0, 1, 3, 7, 8]) == [[0, 1], [3], [7, 8]]
    assert contiguous([8, 3, 7]) == [[3], [7, 8]]
    assert contiguous([]) == []


@given(st.sets(st.integers(0, 99)))
def test_ranges_hold_each_layer_once_and_could_not_be_joined(layers):
    ranges = contiguous(list(layers))
    assert [layer for found in ranges for layer in found] == sorted(layers)
    assert all(found == list(range(found[0], found[-1] + 1)) for found in ranges)
    assert all(after[0] > before[-1] + 1 for before, after in pairwise(ranges))


def test_neighbours_are_named_by_the_first_and_the_last():
    assert named([3]) == "layer 3"
    assert named([3, 4, 5]) == "layers 3-5"
    assert named([1, 3, 4, 5]) == "layers 1, 3-5"


def test_neighbouring_layers_are_made_in_one_run(instance):
    seen = []

    @dg.asset(partitions_def=LAYERS, backfill_policy=dg.BackfillPolicy.single_run())
    def scores(context: dg.AssetExecutionContext) -> None:
        seen.append(list(context.partition_keys))

    materialize(definitions(scores), instance, ["scores"], layers=[1, 2])
    materialize(definitions(scores), instance, ["scores"], layers=[0])
    assert seen == [["L01", "L02"], ["L00"]]
    assert {run.tags["neuronledger/by"] for run in instance.get_runs()} == {"command"}


def test_an_error_of_ours_is_handed_on_word_for_word(instance):
    def work(context):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise LakeError("nothing was written to `scores`; make room") from error

    with pytest.raises(NeuronLedgerError, match=r"^nothing was written to `scores`; make room$"):
        materialize(one(work), instance, ["scores"])


def test_an_error_of_a_library_keeps_its_kind(instance):
    def work(context):
        return {}["nothing"]

    with pytest.raises(NeuronLedgerError, match=r"KeyError: 'nothing'"):
        materialize(one(work), instance, ["scores"])


def test_a_check_that_fails_is_named_with_what_it_found(instance):
    def work(context):
        return dg.MaterializeResult(
            check_results=[dg.AssetCheckResult(passed=False, check_name="keys_are_unique", description="2 keys twice")]
        )

    built = one(work, check_specs=[dg.AssetCheckSpec("keys_are_unique", asset="scores", blocking=True)])
    with pytest.raises(NeuronLedgerError, match="keys_are_unique"):
        materialize(built, instance, ["scores", "later"])


def test_ctrl_c_in_a_run_is_no_failure_of_the_run(instance):
    with pytest.raises(KeyboardInterrupt):
        materialize(one(lambda context: signal.raise_signal(signal.SIGINT)), instance, ["scores"])


def test_an_outcome_begins_with_nothing_made_and_nothing_failed():
    assert (Outcome().made, Outcome().failed) == ([], {})


def test_each_neuron_is_a_run_of_its_own_and_one_that_fails_stops_no_other(instance):
    neurons = dg.MultiPartitionsDefinition(
        {"layer": LAYERS, "neuron": dg.StaticPartitionsDefinition(["N0000", "N0001"])}
    )

    def define(name, *deps):
        @dg.asset(name=name, partitions_def=neurons, deps=deps)
        def made(context: dg.AssetExecutionContext):
            if context.partition_key == "L00|N0001":
                raise LakeError("no")

        return made

    names = ["neuron_exemplars", "neuron_explanations", "neuron_simulations", "neuron_scores"]
    built = definitions(*(define(name, *names[:place][-1:]) for place, name in enumerate(names)))
    said = []
    project = SimpleNamespace(choices=SimpleNamespace(scorers=()))
    runner = Runner(built, instance, lake=None, project=project, outside=None, say=said.append)
    outcome = runner.recompute([(0, 1), (2, 0)])
    assert outcome.made == ["neuron 2:0"]
    assert outcome.failed == {"neuron 0:1": "no"}
    assert said == ["neuron 0:1", "neuron 2:0"]
