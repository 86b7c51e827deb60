"""What a plan counts beside requests."""

import polars as pl

from assets.plan import _passes

NEURON = {"layer": 0, "neuron": 1, "polarity": "+"}


def test_ablations_take_a_pass_for_each_explanation_baseline_and_mean_on_each_scored_text():
    exemplars = pl.DataFrame(
        [NEURON | {"split": "score"}] * 10
        + [NEURON | {"split": "explain"}] * 5
        + [NEURON | {"neuron": 2, "split": "score"}] * 4
    )
    written = pl.DataFrame(
        [NEURON | {"text": "a"}, NEURON | {"text": "b"}, NEURON | {"text": None}, NEURON | {"neuron": 3, "text": "c"}]
    )
    # Two explanations with words, two baselines and the mean; the other neurons lack words or texts.
    assert _passes({"exemplars": exemplars}, written) == 50
    assert _passes({"exemplars": exemplars}, written, more=0) == 30
    assert _passes({"exemplars": exemplars}, written.clear()) == 0
