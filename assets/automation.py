"""Automation: what Dagster makes by itself when a model changes, and what it must not.

    subject_layers --> activations --> exemplars --> explanations --> simulations (--> judgements --> ablations) --> scores
                       one run for     each layer alone, and only where its parent came out otherwise
                       all stale layers

A slice is asked for when one of its parents has another data version, or its code another version. Data versions are hashes
of values, so a slice that comes out the same ends the chain. Dagster's own `eager()` does not stop there.
"""

import dagster as dg

CAPTURE = ("activations", "neuron_statistics", "token_associations")
CHEAP = ("exemplars", "scores")
"""Hops that ask no language model."""
ASKING = ("explanations", "simulations", "judgements", "ablations")
"""Hops that may ask one, and so may cost money."""
SENSOR = "when_the_model_changes"
INTERVAL = 30
"""Seconds between two looks, at least."""


def refresh_on_change() -> dg.AutomationCondition:
    """Make a slice when what it is made from came out otherwise, once all of that is there.

    A parent that is asked for at the same time is waited for: in one run with it nobody would know yet what comes out the same.
    """
    condition = dg.AutomationCondition
    changed: dg.AutomationCondition = (
        condition.newly_missing()
        | condition.any_deps_match(condition.data_version_changed())
        | condition.code_version_changed()
    )
    coming = condition.any_deps_in_progress() | condition.any_deps_match(condition.will_be_requested())
    waiting = condition.any_deps_missing() | coming | condition.in_progress()
    return (changed.since_last_handled() & ~waiting).with_label("refresh_on_change")


def automated(assets: list[dg.AssetsDefinition], *, spending: bool) -> list[dg.AssetsDefinition]:
    """The assets of layers with this condition; those that may ask a language model only if `spending`."""
    names = {dg.AssetKey(name) for name in (*CAPTURE, *CHEAP, *(ASKING if spending else ()))}

    def conditioned(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec.replace_attributes(automation_condition=refresh_on_change()) if spec.key in names else spec

    return [asset.map_asset_specs(conditioned) for asset in assets]


def sensor() -> dg.AutomationConditionSensorDefinition:
    """What looks at the conditions now and then while the daemon runs."""
    return dg.AutomationConditionSensorDefinition(
        SENSOR,
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=INTERVAL,
        description="Makes again what a changed model made stale: one pass for all stale layers, then only what "
        "comes out otherwise. It asks no language model unless a budget is set for it.",
    )
