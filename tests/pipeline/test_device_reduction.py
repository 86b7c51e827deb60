"""Device reduction: on a GPU, activations give the capture that they give on a CPU, to the byte.

Without a GPU the same kernels run in Triton's interpreter.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.capture import merge, plan
from pipeline.errors import CaptureError, SubjectError
from pipeline.reduction import LayerReduction

# Without a GPU, Triton's interpreter computes with numpy, which warns of what is refused a moment later.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

device_reduction = pytest.importorskip("pipeline.device_reduction", reason="kernels for a GPU need the package triton")
DeviceReduction, TextsOnDevice = device_reduction.DeviceReduction, device_reduction.TextsOnDevice

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEEDS = st.integers(0, 2**31)
EXAMPLES = 25 if DEVICE == "cuda" else 2
KINDS = 10


def behaviour(sequences, seed=0, copies=1):
    """What neurons of every sort do on each window: arrays (token, neuron), `copies` of each of ten sorts.

    Constant, dead with zeros of both signs, quarters that tie, mostly silent, tiny, huge, with heavy tails, far from
    zero, below what float32 holds in full, and whole numbers with halves to be rounded.
    """
    draw = np.random.default_rng(seed)
    arrays = []
    for tokens in sequences["token_ids"]:
        x = draw.normal(size=(len(tokens), copies, KINDS)) * (1, 1, 1, 1, 1e-12, 1e12, 1, 1, 1e-41, 1)
        x[..., 0] = 0.1
        x[..., 1] = np.where(draw.random((len(tokens), copies)) < 0.5, -0.0, 0.0)
        x[..., 2] = draw.integers(-8, 9, (len(tokens), copies)) / 4
        x[..., 3] = np.where(x[..., 3] > 0.8, x[..., 3], x[..., 1])
        x[..., 6] **= 5
        x[..., 7] += 30
        x[..., 9] = draw.integers(-4096, 4096, (len(tokens), copies)) / 2
        arrays.append(x.reshape(len(tokens), -1).astype(np.float32))
    return arrays


PROBE = np.array([0.1, 0, 2, 3, 1e-12, 1e12, 40, 30, 0, 2048], np.float32)


def reductions(planned, *, signed, copies=1, start=None):
    """The reduction of one layer on the host and on the device."""
    how = {"layer": 3, "signed": signed, "seed": 7, "probe": np.tile(PROBE, copies), "start": start}
    return LayerReduction(planned, **how), DeviceReduction(TextsOnDevice(planned, DEVICE), **how)


def give(reducing, planned, arrays, *, batch, windows=None, dtype=torch.float32):
    """Hand over windows in batches of equally long ones, with a view into more tokens and neurons than there are."""
    for some in planned.batches(np.arange(planned.n_windows) if windows is None else windows, batch):
        length, width = arrays[some[0]].shape
        around = torch.full((len(some), length + 2, width), torch.nan)
        for row, window in enumerate(some):
            around[row, 1:-1] = torch.from_numpy(arrays[window])
        if isinstance(reducing, DeviceReduction):
            around = around.to(DEVICE)
        reducing.receive(some, around.to(dtype)[:, 1:-1])


@settings(max_examples=EXAMPLES, deadline=None)
@given(n=st.integers(1, 60), seed=SEEDS, signed=st.booleans(), batches=st.tuples(*[st.integers(1, 70)] * 2))
def test_the_device_keeps_what_the_host_keeps(some_corpus, differing, *, n, seed, signed, batches):
    sequences = some_corpus(n, seed=seed, longest=9)
    arrays, planned = behaviour(sequences, seed), plan(sequences)
    host, device = reductions(planned, signed=signed)
    for reducing, batch in zip((host, device), batches, strict=True):
        give(reducing, planned, arrays, batch=batch)
    assert differing(host.result(), device.result()) == []


def test_windows_of_any_length_and_more_neurons_than_a_block(some_corpus, differing):
    sequences = some_corpus(3, longest=70)
    arrays, planned = behaviour(sequences, copies=14), plan(sequences)
    host, device = reductions(planned, signed=True, copies=14)
    for reducing in (host, device):
        give(reducing, planned, arrays, batch=5)
    assert differing(host.result(), device.result()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_number_format_is_read_as_it_is(some_corpus, differing, dtype):
    sequences = some_corpus(20, longest=9)
    planned = plan(sequences)
    arrays = [x[:, [2, 3, 7]] for x in behaviour(sequences)]
    how = {"layer": 3, "signed": False, "seed": 7, "probe": PROBE[[2, 3, 7]]}
    host, device = LayerReduction(planned, **how), DeviceReduction(TextsOnDevice(planned, DEVICE), **how)
    narrowed = [torch.from_numpy(x).to(dtype).to(torch.float32).numpy() for x in arrays]
    give(host, planned, narrowed, batch=20)
    give(device, planned, arrays, batch=20, dtype=dtype)
    assert differing(host.result(), device.result()) == []


@settings(max_examples=EXAMPLES, deadline=None)
@given(n=st.integers(2, 50), seed=SEEDS, signed=st.booleans(), share=st.floats(0, 1))
def test_a_pass_may_change_its_device_halfway(some_corpus, differing, *, n, seed, signed, share):
    sequences = some_corpus(n, seed=seed, longest=9)
    arrays, planned = behaviour(sequences, seed), plan(sequences)
    first = np.random.default_rng(seed).random(n) < share
    whole, begun = reductions(planned, signed=signed)
    give(whole, planned, arrays, batch=20)
    give(begun, planned, arrays, batch=20, windows=np.flatnonzero(first))
    there, back = reductions(planned, signed=signed, start=begun.result())
    for reducing in (there, back):
        give(reducing, planned, arrays, batch=20, windows=np.flatnonzero(~first))
        assert differing(whole.result(), reducing.result()) == []


def test_captures_of_both_sides_merge(some_corpus, differing):
    sequences = some_corpus(40, longest=9)
    arrays, planned = behaviour(sequences), plan(sequences)
    whole, _ = reductions(planned, signed=True)
    host, device = reductions(planned, signed=True)
    give(whole, planned, arrays, batch=40)
    give(host, planned, arrays, batch=7, windows=np.arange(0, 40, 2))
    give(device, planned, arrays, batch=9, windows=np.arange(1, 40, 2))
    assert differing(whole.result(), merge([device.result(), host.result()])) == []


def test_layers_share_the_text_that_is_before_them(some_corpus, differing):
    sequences = some_corpus(30, longest=9)
    planned = plan(sequences)
    texts = TextsOnDevice(planned, DEVICE)
    narrow, wide = behaviour(sequences, 1), behaviour(sequences, 2, copies=2)
    layers = [
        DeviceReduction(texts, layer=layer, signed=False, seed=7, probe=np.tile(PROBE, layer)) for layer in (1, 2)
    ]
    for some in planned.batches(np.arange(30), 8):
        for layer, arrays in zip(layers, (narrow, wide), strict=True):
            layer.receive(some, torch.from_numpy(np.stack([arrays[window] for window in some])).to(DEVICE))
    for place, arrays in enumerate((narrow, wide)):
        alone = LayerReduction(planned, layer=place + 1, signed=False, seed=7, probe=np.tile(PROBE, place + 1))
        give(alone, planned, arrays, batch=30)
        assert differing(alone.result(), layers[place].result()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_the_result(corpus, value):
    planned = plan(corpus(("explain", [1, 2]), ("score", [3, 4])))
    arrays = [np.ones((2, KINDS), np.float32) for _ in range(2)]
    arrays[1][0, 6] = value
    _, device = reductions(planned, signed=False)
    give(device, planned, arrays, batch=2)
    with pytest.raises(SubjectError, match="layer 3 gave activations that are NaN or infinite, first in neuron 6"):
        device.result()


def test_what_is_not_finite_is_refused_while_the_pass_goes_on(corpus):
    planned = plan(corpus(*[("explain", [1, 2])] * 4))
    arrays = [np.full((2, KINDS), np.nan, np.float32) for _ in range(4)]
    _, device = reductions(planned, signed=False)
    with pytest.raises(SubjectError, match="check the weights, or load the model in float32"):
        give(device, planned, arrays, batch=1)


def test_a_token_sum_holds_what_32_bits_do_not(corpus, differing):
    planned = plan(corpus(("explain", [1, 1, 1, 1])))
    arrays = [np.array([[2.0**40], [0.5], [-(2.0**30)], [1.5]], np.float32)]
    how = {"layer": 3, "signed": False, "seed": 7, "probe": np.array([2.0**16], np.float32)}
    host, device = LayerReduction(planned, **how), DeviceReduction(TextsOnDevice(planned, DEVICE), **how)
    for reducing in (host, device):
        give(reducing, planned, arrays, batch=1)
    assert device.result().token_sums.tolist() == [[2**40 - 2**30 + 2]]
    assert differing(host.result(), device.result()) == []


def test_an_activation_beyond_all_measure_of_the_probe_is_refused(corpus):
    planned = plan(corpus(("explain", [1, 2])))
    _, device = reductions(planned, signed=False)
    give(device, planned, [np.full((2, KINDS), 1e30, np.float32)], batch=1)
    with pytest.raises(SubjectError, match="neuron 0 of layer 3 reached more than 1e\\+15 steps"):
        device.result()


def test_a_window_comes_once(corpus):
    planned = plan(corpus(("explain", [1, 2])))
    _, device = reductions(planned, signed=False)
    arrays = [np.ones((2, KINDS), np.float32)]
    give(device, planned, arrays, batch=1)
    with pytest.raises(CaptureError, match="window 0 came twice to layer 3"):
        give(device, planned, arrays, batch=1)


def test_a_start_of_another_seed_is_refused(corpus):
    planned = plan(corpus(("explain", [1, 2])))
    start = LayerReduction(planned, layer=3, signed=False, seed=8, probe=PROBE).result()
    with pytest.raises(CaptureError, match="is not of this model, text and seed; remove it"):
        DeviceReduction(TextsOnDevice(planned, DEVICE), layer=3, signed=False, seed=7, probe=PROBE, start=start)


def test_memory_that_runs_out_leaves_nothing_behind(some_corpus, differing, monkeypatch):
    sequences = some_corpus(20, longest=9)
    arrays, planned = behaviour(sequences), plan(sequences)
    host, device = reductions(planned, signed=False)
    for reducing in (host, device):
        give(reducing, planned, arrays, batch=20, windows=np.arange(10))

    def full(*_: object, **__: object):
        raise torch.OutOfMemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", full)
        with pytest.raises(torch.OutOfMemoryError):
            give(device, planned, arrays, batch=20, windows=np.arange(10, 20))
    for reducing in (host, device):
        give(reducing, planned, arrays, batch=5, windows=np.arange(10, 20))
    assert differing(host.result(), device.result()) == []


def test_a_corpus_of_nothing_but_scored_text_has_no_token_sums(some_corpus):
    sequences = some_corpus(4, splits=("score",))
    planned = plan(sequences)
    _, device = reductions(planned, signed=False)
    give(device, planned, behaviour(sequences), batch=4)
    found = device.result()
    assert found.token_sums.shape == (0, KINDS)
    assert found.open_count == 0


def test_a_device_that_kernels_run_on_is_tried_out():
    assert device_reduction.try_out(DEVICE) is None


def test_a_chunk_is_summed_in_several_programs(some_corpus, differing, monkeypatch):
    monkeypatch.setattr(device_reduction, "MOST_SHARES", 3)
    monkeypatch.setattr(device_reduction, "SEGMENT", 2)
    sequences = some_corpus(20, longest=4)
    arrays, planned = behaviour(sequences), plan(sequences)
    host, device = reductions(planned, signed=False)
    for reducing in (host, device):
        give(reducing, planned, arrays, batch=20)
    assert differing(host.result(), device.result()) == []
