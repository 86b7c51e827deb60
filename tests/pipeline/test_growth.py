"""Text that comes later: what was captured before and what is captured of the rest are together the capture of all."""

import numpy as np
import pytest

from pipeline import capture as streaming
from pipeline.capture import can_grow, merge


@pytest.mark.parametrize("sizes", [{}, {"TOP": 4, "PER_SAMPLE": 2, "SAMPLED": 8, "MAXIMA": 10, "HISTOGRAM_WINDOWS": 8}])
@pytest.mark.parametrize("tokens", [3, 8, 12])
def test_where_a_capture_can_grow_it_grows_into_that_of_all_text_to_the_byte(  # noqa: PLR0917 (fixtures)
    some_corpus, truth, captured, differing, shrunk, sizes, tokens
):
    can = []
    with shrunk(LOOKUP_BYTES=4 * 6 * tokens, **sizes):
        for seed in range(6):
            sequences = some_corpus(36, seed=seed)
            arrays, draw = truth(sequences, seed=seed), np.random.default_rng(seed)
            before = np.sort(draw.choice(36, size=int(draw.integers(1, 36)), replace=False))
            rest = np.setdiff1d(np.arange(36), before)
            _, earlier = captured(sequences[before], [arrays[window] for window in before])
            plan, later = captured(sequences, arrays, windows=rest)
            can.append(can_grow(earlier, plan))
            if can[-1]:
                grown, whole = merge([earlier, later]), captured(sequences, arrays)[1]
                # A sample that shrank is kept in fewer classes, of which a table has the sum.
                assert np.array_equal(grown.histogram.sum(axis=0), whole.histogram.sum(axis=0))
                assert set(differing(grown, whole)) <= {"histogram"}
    # With a sum for each of the twelve tokens nothing stands in the way.
    assert all(can) if tokens == 12 else any(can) or tokens < 8


def test_a_capture_with_a_window_that_is_gone_cannot_grow(some_corpus, truth, captured):
    sequences = some_corpus(12)
    _, earlier = captured(sequences, truth(sequences))
    assert can_grow(earlier, streaming.plan(sequences))
    assert not can_grow(earlier, streaming.plan(sequences[1:]))
    assert not can_grow(earlier, streaming.plan(some_corpus(12, seed=1)[:-1]))


def test_a_token_that_had_no_sum_and_now_needs_one_stands_in_the_way(corpus, truth, captured, shrunk):
    with shrunk(LOOKUP_BYTES=4 * 6):
        first = corpus(("explain", [1, 1, 2]))
        both = corpus(("explain", [1, 1, 2]), ("explain", [2, 2, 2]))
        _, earlier = captured(first, truth(first))
        # Token 2 is the commonest now, and what the neurons did on it before was not summed.
        assert not can_grow(earlier, streaming.plan(both))
        fine = corpus(("explain", [1, 1, 2]), ("explain", [3, 3, 3]))
        assert can_grow(earlier, streaming.plan(fine))
