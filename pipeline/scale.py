"""The scale that activations are shown on: whole numbers from 0 to 10.

One definition and one rounding for every prompt, page and table: floor, in float64, in the order (10 * x) / maximum.
The order matters: in float32, or with x / maximum first, some values fall into the neighbouring bin (Bills et al. 2023,
`normalize_activations`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

TOP = 10


def scale(activations: ArrayLike, maximum: ArrayLike) -> NDArray[np.int8]:
    """Activations as whole numbers: `min(10, floor(10 * max(0, x) / maximum))`, and 0 wherever `maximum` <= 0.

    Both arguments are in units of the neuron, and broadcast. Only `maximum` itself, or more, reaches 10. NaN gives 0,
    as Python's `max(0.0, nan)` does.
    """
    x = np.asarray(activations, dtype=np.float64)
    most = np.asarray(maximum, dtype=np.float64)
    positive = np.where(x > 0, x, 0.0)
    alive = most > 0
    with np.errstate(over="ignore"):
        steps = np.floor((TOP * positive) / np.where(alive, most, 1.0))
    return np.where(alive, np.minimum(TOP, steps), 0).astype(np.int8)
