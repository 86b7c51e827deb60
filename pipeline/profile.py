"""Profile: what a model of a certain shape would take, in time, memory, bytes and requests, before any of it is run.

    tokens     windows x tokens of a window
    time       tokens x (2 x weights of the blocks / operations a second  +  neurons x time to reduce one activation)
    memory     the weights, a table of token sums of each layer, and what is kept of each neuron while the pass runs
    lake       bytes of each neuron that was captured
    requests   neurons x polarities x ways to explain x (one to explain + those to simulate ten excerpts)
    asking     requests x (time of one core, bytes in the lake)

The constants were measured on small models and on a short pass of GPT-2 XL (`benchmarks/RESULTS.md`), and
`tests/pipeline/test_profile.py` holds what they give against what was measured otherwise. Attention, which grows with the
square of the window, is left out: at 64 tokens it is nothing. Nothing here knows a price.
"""

from dataclasses import dataclass

from pipeline.capture import LOOKUP_BYTES
from pipeline.simulations import Way


@dataclass(frozen=True)
class Shape:
    """A model, as far as it decides what it takes."""

    name: str
    layers: int
    neurons: int
    """Of one layer."""
    block_weights: int
    """Weights of all blocks: each token is multiplied by each of them once."""
    other_weights: int
    """Embeddings and what else is only looked up."""
    signed: bool = False
    """Whether each neuron is explained on both sides of zero (gated MLPs)."""

    @property
    def all_neurons(self) -> int:
        """Of all layers."""
        return self.layers * self.neurons


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("gpt2", 12, 3_072, 85_056_000, 39_383_808),
        Shape("gpt2-xl", 48, 6_400, 1_475_561_600, 82_049_600),
        Shape("llama-70b", 80, 28_672, 68_452_360_192, 2_101_346_304, signed=True),
    )
}
"""Weights as counted in GPT-2 (124 M and 1.56 B) and Llama 3 70B."""


@dataclass(frozen=True)
class Device:
    """What computes the pass."""

    name: str
    operations: float
    """A second, in the forward pass: what it reached, not what its maker says."""
    weight_bytes: int
    """Of one weight in this number format."""
    memory: float
    """Bytes."""


DEVICES = (
    Device("H200, float32", 44e12, 4, 141e9),
    Device("H200, bfloat16", 300e12, 2, 141e9),
)
"""GPT-2 reached 40e12 operations a second in float32 and 245e12 in bfloat16, GPT-2 XL 45e12 and 364e12."""

REDUCE_SECONDS = 8.2e-12
"""On an H200, for one activation: 7.8e-12 for GPT-2 in float32, 8.2e-12 in bfloat16."""

STATE_BYTES = 20_600
"""Kept of one neuron while the pass runs, besides the token sums of its layer (GPT-2 XL: 5.9 of 8.15 GiB). On a GPU; on a CPU
a seventh less."""
STATE_BYTES_SIGNED = 32_800
"""The same for both sides of zero."""

CAPTURED_BYTES = 11_633
"""In the lake, of one neuron (GPT-2, 56.8 records)."""
RECORD_BYTES = 8_407
"""Of these its records, of which signed neurons have twice as many."""


@dataclass(frozen=True)
class Usual:
    """Tokens of a usual request and its reply."""

    prompt: int
    reply: int


EXPLAIN = Usual(2_740, 80)
SIMULATE: dict[Way, tuple[int, Usual]] = {
    "json": (10, Usual(1_240, 330)),
    "json-many": (2, Usual(2_850, 1_450)),
    "json-sparse": (1, Usual(4_400, 3_160)),
    "json-closed": (1, Usual(4_400, 3_160)),
    "json-schema": (10, Usual(1_240, 330)),
    "json-logprobs": (10, Usual(1_240, 330)),
    "json-logprobs-9": (10, Usual(1_240, 330)),
    "all-at-once": (10, Usual(1_015, 1)),
    "all-at-once-9": (10, Usual(1_015, 1)),
    "one-at-a-time": (640, Usual(860, 1)),
    "one-at-a-time-9": (640, Usual(860, 1)),
}
"""Requests about ten excerpts of 64 tokens, and how long each is."""
"""What `plan` estimates for windows of 64 tokens while no reply is kept, two and a half bytes to a token."""


ASKED_SECONDS = 5.8e-3
"""Of one core, for each request: written, sent, kept and read, with its share of the baselines and of all scores."""
ASKED_BYTES = 3_300
"""In the lake, for each request: the reply word for word, and its share of explanations, simulations and scores.

Both of a layer of GPT-2 XL's width, asked `json-many` at the scripted endpoint, whose words repeat: real ones take more."""


@dataclass(frozen=True)
class Capture:
    """What one forward pass takes on one device."""

    device: str
    seconds: float
    memory: float
    """Bytes: the weights, and what is kept while it runs."""
    fits: bool
    """Whether the weights and what is kept fit the device together."""


@dataclass(frozen=True)
class Asking:
    """What language models are asked."""

    requests: int
    prompt_tokens: int
    reply_tokens: int
    seconds: float
    """Of one core, here."""
    lake: int
    """Bytes."""


def capture(shape: Shape, device: Device, *, tokens: int) -> Capture:
    """One pass over so many tokens of text, all layers of it."""
    each = 2 * shape.block_weights / device.operations + shape.all_neurons * REDUCE_SECONDS
    weights = (shape.block_weights + shape.other_weights) * device.weight_bytes
    memory = weights + state_bytes(shape)
    return Capture(device.name, tokens * each, memory, memory <= device.memory)


def state_bytes(shape: Shape) -> int:
    """What a pass keeps between two batches, after a thousand windows and more."""
    each = STATE_BYTES_SIGNED if shape.signed else STATE_BYTES
    return shape.layers * LOOKUP_BYTES + shape.all_neurons * each


def lake_bytes(shape: Shape) -> int:
    """Of the tables of the pass, in the lake."""
    return shape.all_neurons * (CAPTURED_BYTES + (RECORD_BYTES if shape.signed else 0))


def asking(shape: Shape, *, methods: int, simulation: Way, neurons: int | None = None) -> Asking:
    """What it takes to explain and score so many neurons of each layer, all of them if None, each in `methods` ways."""
    explained = shape.layers * min(neurons or shape.neurons, shape.neurons) * (2 if shape.signed else 1) * methods
    each, usual = SIMULATE[simulation]
    simulated = explained * each
    requests = explained + simulated
    return Asking(
        requests=requests,
        prompt_tokens=explained * EXPLAIN.prompt + simulated * usual.prompt,
        reply_tokens=explained * EXPLAIN.reply + simulated * usual.reply,
        seconds=requests * ASKED_SECONDS,
        lake=requests * ASKED_BYTES,
    )
