"""The scale from 0 to 10: OpenAI's definition bit for bit, and its laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scale import scale

FLOATS = st.floats(allow_infinity=False) | st.floats(width=32, allow_infinity=False) | st.integers(-20, 20).map(float)
MAXIMA = st.floats(-1e300, 1e300) | st.floats(0, 1, width=32) | st.integers(-2, 20).map(float)


def defined(x, maximum):
    """Bills et al. 2023, `normalize_activations`, in plain Python floats."""
    if maximum <= 0:
        return 0
    return min(10, math.floor(10 * max(0.0, x) / maximum))


def safe(x, maximum):
    """Where the definition has a value: it overflows where 10 x does, or the quotient."""
    return maximum <= 0 or math.isnan(x) or x <= 0 or math.isfinite(10 * x / maximum)


@given(FLOATS, MAXIMA)
def test_it_is_the_published_definition(x, maximum):
    if safe(x, maximum):
        assert scale(x, maximum) == defined(x, maximum)


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=50))
def test_it_is_the_published_definition_for_float32_records(values):
    values = np.array(values, np.float32)
    maximum = max(0.0, *values.tolist(), 0.0)
    assert scale(values, values.max().clip(0)).tolist() == [defined(x, maximum) for x in values.tolist()]


@pytest.mark.parametrize("x", [5e-324, 1e-310, 2.2250738585072014e-308])
def test_a_subnormal_maximum_still_scales(x):
    assert scale([x, x / 2, -x], x).tolist() == [10, defined(x / 2, x), 0]


def test_nothing_that_is_no_number_or_not_positive_is_above_zero():
    assert scale([math.nan, -1.0, -0.0, 0.0, -math.inf], 2.0).tolist() == [0] * 5
    assert scale([1.0, math.inf, math.nan], 0.0).tolist() == [0] * 3
    assert scale([1.0, math.inf, math.nan], -1.0).tolist() == [0] * 3
    assert scale([1.0], math.nan).tolist() == [0]


@given(st.floats(0, 2.0**127, width=32), st.floats(2.0**-149, 2.0**127, width=32))
def test_only_the_maximum_or_more_is_ten(x, maximum):
    assert (scale(x, maximum) == 10) == (x >= maximum)
    assert scale(np.nextafter(np.float32(maximum), np.float32(0)), maximum) < 10
    assert scale(maximum, maximum) == 10


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0.001, 10))
def test_more_activation_is_never_less_on_the_scale(a, b, maximum):
    low, high = sorted([a, b])
    assert scale(low, maximum) <= scale(high, maximum)


def test_both_arguments_broadcast_and_the_result_is_bytes():
    steps = scale(np.array([[1, 2], [3, 4]], np.float32), np.array([[2], [4]], np.float32))
    assert steps.tolist() == [[5, 10], [7, 10]]
    assert steps.dtype == np.int8
    assert scale([], 1.0).tolist() == []


def test_an_infinite_activation_is_at_the_top_of_a_finite_scale():
    # Infinity over infinity has no value; capture refuses it before it could come here.
    assert scale(math.inf, 1.0) == 10
