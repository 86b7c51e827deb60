"""A run: the steps that are not fresh, made through Dagster in the order of the hops.

The same assets, instance and events as in Dagster's UI; only the choice of what to make is ours, because Dagster's own
staleness stops at the first hop and cannot be seen by partition.
"""

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import dagster as dg

from assets import scores
from assets.activations import LAYERS_TAG
from assets.explanations import more_inputs
from assets.freshness import UNANSWERED, Outside, State, states
from assets.process import PROCESS_TAG, process_name
from assets.project import Project, layer_key, neuron_name
from pipeline.errors import NeuronLedgerError
from pipeline.ports import Lake

OURS = {"Failure", "NeuronLedgerError", *(kind.__name__ for kind in NeuronLedgerError.__subclasses__())}
START_TAG = "dagster/asset_partition_range_start"
END_TAG = "dagster/asset_partition_range_end"
CAPTURE = ("activations", "neuron_statistics", "token_associations")
FIRST_HOPS = ("sequences", "subject_layers", *CAPTURE)
INTERRUPTS = ("KeyboardInterrupt", dg.DagsterExecutionInterruptedError.__name__)


def last_hops(project: Project) -> tuple[str, ...]:
    """What is made of one layer after its activations, each from the one before."""
    return "exemplars", "explanations", "simulations", *scores.more_inputs(project), "scores"


def materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    *,
    layers: Sequence[int] = (),
    neuron: tuple[int, int] | None = None,
) -> dg.ExecuteInProcessResult:
    """One Dagster run that makes `assets` for no partition, for some layers, or for one neuron.

    Layers that are no neighbours must be of an asset that heeds `LAYERS_TAG`: Dagster knows ranges only.

    Raises:
        NeuronLedgerError: the run failed; the message is that of the step's own error.
        KeyboardInterrupt: Ctrl-C came while it ran.
    """
    keys = [dg.AssetKey(name) for name in assets]
    definition = definitions.resolve_implicit_global_asset_job_def()
    partition_key, tags = None, {"neuronledger/by": "command", PROCESS_TAG: process_name(os.getpid()) or "unknown"}
    if neuron is not None:
        partition_key = neuron_name(*neuron)
    elif len(layers) == 1:
        partition_key = layer_key(layers[0])
    elif layers:
        tags |= {START_TAG: layer_key(layers[0]), END_TAG: layer_key(layers[-1])}
        if len(contiguous(layers)) > 1:
            tags[LAYERS_TAG] = ",".join(map(str, layers))
    result = definition.execute_in_process(
        instance=instance,
        asset_selection=keys,
        partition_key=partition_key,
        tags=tags,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )
    if not result.success:
        if _interrupted(result):
            raise KeyboardInterrupt
        raise failure(result)
    if skipped := [
        str(event.step_key) for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_SKIPPED
    ]:
        raise NeuronLedgerError(f"{', '.join(skipped)} not made: {_failed_checks(result)}")
    return result


def failure(result: dg.ExecuteInProcessResult) -> NeuronLedgerError:
    """The error of a failed run, as one of ours: the cause's own message, without Dagster's frames around it."""
    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.error:
            error = event.step_failure_data.error
            if error.cls_name == "DagsterAssetCheckFailedError":
                return NeuronLedgerError(f"nothing more is made from it: {_failed_checks(result)}")
            # The first of our own errors says what to do; what lies below it is how a library put it.
            while error.cause and error.cls_name not in OURS:
                error = error.cause
            return NeuronLedgerError(
                re.sub(r"^[\w.]+: ", "", error.message.strip()) if error.cls_name in OURS else error.message.strip()
            )
    return NeuronLedgerError(f"run {result.run_id} failed; see it in the Dagster UI")


def _interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether Ctrl-C ended a run: Dagster catches it, and calls the run failed."""
    ends = [event for event in result.all_events if event.event_type == dg.DagsterEventType.RUN_FAILURE]
    errors = [event.job_failure_data.error for event in ends]
    return any(error and error.cls_name in INTERRUPTS for error in errors)


def _failed_checks(result: dg.ExecuteInProcessResult) -> str:
    failed = [check for check in result.get_asset_check_evaluations() if not check.passed]
    said = (f"{check.asset_key.to_user_string()}.{check.check_name} ({check.description})" for check in failed)
    return f"blocked by failed checks: {'; '.join(said)}" if failed else "an asset before it gave no output"


def contiguous(layers: Sequence[int]) -> list[list[int]]:
    """Layers as runs of neighbours: one run of Dagster reads the corpus once for each."""
    ranges: list[list[int]] = []
    for layer in sorted(layers):
        if ranges and layer == ranges[-1][-1] + 1:
            ranges[-1].append(layer)
        else:
            ranges.append([layer])
    return ranges


@dataclass
class Outcome:
    """What a run came to: which slices were made, and which could not be."""

    made: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """For each slice that failed, why."""


@dataclass(frozen=True)
class Runner:
    """Makes what is not fresh, through Dagster."""

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    lake: Lake
    project: Project
    outside: Outside
    say: Callable[[str], None]
    enough: Callable[[], bool] = lambda: False
    """Whether nothing more may be asked of a language model; then no further layer is begun."""

    def refresh(self, layers: Sequence[int]) -> Outcome:
        """Make every slice of these layers that is not fresh; a layer that fails does not stop the others."""
        outcome = Outcome()
        if self._not_fresh(layers, "sequences"):
            self._make(outcome, "sequences", ["sequences"])
        for neighbours in contiguous(self._not_fresh(layers, "subject_layers")):
            self._make(outcome, f"subject_layers {named(neighbours)}", ["subject_layers"], layers=neighbours)
        # What is not fresh by now could not be made, and nothing may be made from it.
        ready = set(layers) - set(self._not_fresh(layers, "subject_layers"))
        stale = [layer for layer in self._not_fresh(layers, *CAPTURE) if layer in ready]
        if stale and not self._not_fresh(layers, "sequences"):
            self._make(outcome, f"activations {named(stale)}", CAPTURE, layers=stale)
        # Nothing but an explanation that shows them is made from these.
        needed = more_inputs(self.project)
        if needed:
            self._weights(outcome, layers, ready)
        for layer in layers:
            self._explain(outcome, layer, before=(*FIRST_HOPS, *needed))
        if not needed:
            self._weights(outcome, layers, ready)
        if outcome.made:
            self._make(outcome, "layer_summary", ["layer_summary"])
        return outcome

    def _weights(self, outcome: Outcome, layers: Sequence[int], ready: Collection[int]) -> None:
        """What the weights alone say."""
        if self._not_fresh(layers, "vocabulary"):
            self._make(outcome, "vocabulary", ["vocabulary"])
        for neighbours in contiguous([layer for layer in self._not_fresh(layers, "connections") if layer in ready]):
            self._make(outcome, f"connections {named(neighbours)}", ["connections"], layers=neighbours)

    def _explain(self, outcome: Outcome, layer: int, *, before: Sequence[str]) -> None:
        """Make the last hops of a layer, from the first that is not fresh; `before` is what they are made from.

        Exemplars that come out the same leave fresh what was made from them, so they are made first where that can be.
        """
        states = {state.table: state for state in self.states([layer])}
        if any(states[table].status != "fresh" for table in before) or self.enough():
            return
        if states["exemplars"].status != "fresh" and states["explanations"].inherited:
            self._make(outcome, f"exemplars {named([layer])}", ["exemplars"], layers=[layer])
            states = {state.table: state for state in self.states([layer])}
            if states["exemplars"].status != "fresh":
                return
        hops = last_hops(self.project)
        first = next((place for place, table in enumerate(hops) if states[table].status != "fresh"), None)
        if first is not None:
            self._make(outcome, f"{hops[first]} to scores {named([layer])}", hops[first:], layers=[layer])

    def ask_again(self, layers: Sequence[int]) -> Outcome:
        """Make those slices again that lack answers which failed in passing, and what is made from them; no others."""
        outcome, hops = Outcome(), last_hops(self.project)
        for layer in layers:
            causes = {state.table: state.cause for state in self.states([layer])}
            first = next((place for place, table in enumerate(hops) if UNANSWERED in causes[table]), None)
            if first is not None and not self.enough():
                self._make(outcome, f"{hops[first]} to scores {named([layer])}", hops[first:], layers=[layer])
        if outcome.made:
            self._make(outcome, "layer_summary", ["layer_summary"])
        return outcome

    def only(self, hop: str, layers: Sequence[int]) -> Outcome:
        """Make one of the last hops where it is not fresh; a layer of which something before it is not fresh fails."""
        outcome, hops = Outcome(), last_hops(self.project)
        before = (*FIRST_HOPS, *more_inputs(self.project), *hops[: hops.index(hop)])
        for layer in layers:
            states = {state.table: state for state in self.states([layer])}
            if states[hop].status == "fresh" or self.enough():
                continue
            if not_fresh := [table for table in before if states[table].status != "fresh"]:
                first = states[not_fresh[0]]
                outcome.failed[f"{hop} {named([layer])}"] = (
                    f"`{first.table}` is {first.status} ({first.cause}); run without --stage makes all that is missing"
                )
            else:
                self._make(outcome, f"{hop} {named([layer])}", [hop], layers=[layer])
        return outcome

    def recompute(self, neurons: Sequence[tuple[int, int]], *, hops: Sequence[str] = ()) -> Outcome:
        """Make the exemplars, explanations, simulations and scores of single neurons again, or only `hops`; fresh or not."""
        outcome = Outcome()
        for layer, neuron in neurons:
            if self.enough():
                break
            made = [f"neuron_{table}" for table in hops or last_hops(self.project)]
            self._make(outcome, f"neuron {layer}:{neuron}", made, neuron=(layer, neuron))
        return outcome

    def states(self, layers: Sequence[int]) -> list[State]:
        """The state of every slice of these layers, now."""
        return states(self.lake, self.project, self.outside, layers=layers)

    def _not_fresh(self, layers: Sequence[int], *tables: str) -> list[int]:
        stale = {
            state.layer if state.layer is not None else 0
            for state in self.states(layers)
            if state.table in tables and state.status != "fresh"
        }
        return sorted(stale)

    def _make(
        self,
        outcome: Outcome,
        name: str,
        assets: Sequence[str],
        *,
        layers: Sequence[int] = (),
        neuron: tuple[int, int] | None = None,
    ) -> None:
        self.say(name)
        try:
            materialize(self.definitions, self.instance, assets, layers=layers, neuron=neuron)
        except NeuronLedgerError as error:
            outcome.failed[name] = str(error)
        else:
            outcome.made.append(name)


def named(layers: Sequence[int]) -> str:
    """Layers in words, such as `layer 3`, `layers 0-5` or `layers 1, 4-6`."""
    ranges = [str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in contiguous(layers)]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(ranges)}"
