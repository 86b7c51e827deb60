"""What the benchmark of exchange spoils."""

import numpy as np
import pytest

from benchmarks.exchange import spoiled


@pytest.mark.parametrize("seed", range(20))
def test_a_spoiled_file_is_another_but_keeps_most_of_its_bytes_or_loses_them(seed):
    data = b'{"tokens": [" a"], "activations": [0.5], "more": [null, 5, {"x": 1}]}' * 5
    found = [spoiled(data, np.random.default_rng([seed, place])) for place in range(10)]
    assert sum(one != data for one in found) >= 8
