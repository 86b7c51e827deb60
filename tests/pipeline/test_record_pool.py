"""A record pool: behind every slot is what its window did, and a window takes one record however many slots have it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.record_pool import POOLED, SPARE, RecordPool

SLOTS, LENGTH = 5, 3


class Stream:
    """A pool, and beside it what a dumb one would hold: for each slot the window and all its activations."""

    def __init__(self, n_neurons, seed):
        self.draw = np.random.default_rng(seed)
        self.pool = RecordPool(n_neurons, SLOTS, LENGTH)
        self.windows = np.full((n_neurons, SLOTS), -1, np.int32)
        self.truth = np.zeros((n_neurons, SLOTS, LENGTH), np.float32)
        self.seen = 0

    def batch(self, size, share):
        """A batch of windows, each of which comes into some slots of some neurons, in place of what was there."""
        n_neurons = len(self.windows)
        x = self.draw.normal(size=(size, LENGTH, n_neurons)).astype(np.float32)
        lengths = self.draw.integers(1, LENGTH + 1, size)
        place = self.draw.integers(0, size, (n_neurons, SLOTS))
        neuron, slot = np.nonzero(self.draw.random(place.shape) < share)
        fresh = np.full(place.shape, -1, np.int8)
        fresh[neuron, slot] = place[neuron, slot]
        self.windows[neuron, slot] = self.seen + place[neuron, slot]
        shown = np.where(np.arange(LENGTH)[:, None] < lengths[:, None, None], x, 0)
        self.truth[neuron, slot] = shown[place[neuron, slot], :, neuron]
        for first in range(0, n_neurons, POOLED):
            self.pool.store(x, lengths, first, min(first + POOLED, n_neurons), fresh)
        self.seen += size
        assert (fresh == -1).all()


def held(pool, truth):
    """Whether behind every slot there is what is true, to half a step of one in 2**11."""
    steps, exponents = pool.behind(np.tile(np.arange(SLOTS), (len(truth), 1)))
    found = np.ldexp(steps.astype(np.float64), exponents[:, :, None])
    return (np.abs(found - truth) <= np.abs(truth).max(axis=2, keepdims=True) * 2.0**-12).all()


def distinct(windows):
    return sum(len(set(row) - {-1}) for row in windows.tolist())


@settings(max_examples=20)
@given(
    st.sampled_from([1, 7, POOLED + 3]),
    st.integers(0, 2**31),
    st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1)), max_size=6),
)
def test_whatever_comes_and_goes_a_slot_has_its_window_and_a_window_one_record(n_neurons, seed, batches):
    stream = Stream(n_neurons, seed)
    for size, share in [(3, 1.0), *batches]:
        stream.batch(size, share)
        assert held(stream.pool, stream.truth)
        assert len(stream.pool) == distinct(stream.windows)


def test_a_pool_that_was_filled_from_slots_goes_on_as_the_one_they_are_from():
    stream = Stream(POOLED + 3, seed=1)
    for share in (1.0, 0.5, 0.1):
        stream.batch(64, share)
    other = RecordPool(POOLED + 3, SLOTS, LENGTH + 1)
    steps, exponents = stream.pool.behind(np.tile(np.arange(SLOTS), (POOLED + 3, 1)))
    other.put(stream.windows, steps, exponents)
    assert len(other) == len(stream.pool) == distinct(stream.windows)
    assert held(other, np.pad(stream.truth, ((0, 0), (0, 0), (0, 1))))


def test_places_are_used_again():
    stream = Stream(POOLED, seed=2)
    for _ in range(20):
        stream.batch(64, 0.3)
    # Never more than one for every slot, and a few to spare.
    assert len(stream.pool._pools[0].steps) <= POOLED * SLOTS * (1 + 1 / SPARE)
