"""A run: the steps that are not fresh, made through Dagster in the order of the hops.

The same assets, instance and events as in Dagster's UI; only the choice of what to make is ours, because Dagster's own
staleness stops at the first hop and cannot be seen by partition.
"""

from collections.abc import Sequence

import dagster as dg

from assets.project import layer_key, neuron_name
from pipeline.errors import NeuronLedgerError

START_TAG = "dagster/asset_partition_range_start"
END_TAG = "dagster/asset_partition_range_end"
CAPTURE = ("activations", "neuron_statistics", "token_associations")


def materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    *,
    layers: Sequence[int] = (),
    neuron: tuple[int, int] | None = None,
) -> dg.ExecuteInProcessResult:
    """One Dagster run that makes `assets` for no partition, for neighbouring layers, or for one neuron.

    Raises:
        NeuronLedgerError: the run failed; the message is that of the step's own error.
    """
    keys = [dg.AssetKey(name) for name in assets]
    definition = definitions.resolve_implicit_global_asset_job_def()
    partition_key, tags = None, {"neuronledger/by": "command"}
    if neuron is not None:
        partition_key = neuron_name(*neuron)
    elif len(layers) == 1:
        partition_key = layer_key(layers[0])
    elif layers:
        tags |= {START_TAG: layer_key(layers[0]), END_TAG: layer_key(layers[-1])}
    result = definition.execute_in_process(
        instance=instance,
        asset_selection=keys,
        partition_key=partition_key,
        tags=tags,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )
    if not result.success:
        raise failure(result)
    return result


def failure(result: dg.ExecuteInProcessResult) -> NeuronLedgerError:
    """The error of a failed run, as one of ours: the cause's own message, without Dagster's frames around it."""
    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.error:
            error = event.step_failure_data.error
            while error.cause:
                error = error.cause
            return NeuronLedgerError(f"{event.step_key}: {error.message.strip()}")
    return NeuronLedgerError(f"run {result.run_id} failed; see it in the Dagster UI")


def contiguous(layers: Sequence[int]) -> list[list[int]]:
    """Layers as runs of neighbours: one run of Dagster reads the corpus once for each."""
    ranges: list[list[int]] = []
    for layer in sorted(layers):
        if ranges and layer == ranges[-1][-1] + 1:
            ranges[-1].append(layer)
        else:
            ranges.append([layer])
    return ranges
