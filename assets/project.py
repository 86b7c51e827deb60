"""The project: which layers and neurons there are, and the choices that a run's results depend on.

Built once by `assets.definitions` and handed to every asset, so that no asset reads a setting by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from pipeline import token_activation_pairs
from pipeline.human import Statement
from pipeline.languages import ENGLISH
from pipeline.selection import Selection
from pipeline.simulations import Way


@dataclass(frozen=True)
class Choices:
    """What a user chooses that changes results. All of it enters step keys."""

    windows: int
    """Most windows to read from the corpus."""
    length: int
    """Tokens of a window: what was asked for, or the most that the subject reads."""
    seed: int
    explainer: str | None
    """Language model that explains, None for the baselines alone."""
    simulator: str | None
    """Language model that simulates."""
    methods: tuple[str, ...] = (token_activation_pairs.METHOD,)
    """The ways in which the explainer is asked; see `pipeline.methods`."""
    language: str = ENGLISH
    """The language of the explanations; see `pipeline.languages`."""
    simulation: Way = "json"
    """How it is asked; see `pipeline.simulations`."""
    human: tuple[Statement, ...] = ()
    """Explanations that people wrote."""
    scorers: tuple[str, ...] = ()
    """Further scorers; see `pipeline.scorers`."""
    grow: bool = False
    """Whether captures are kept, so that new text is merged into them. Results are the same, so it enters no step key."""
    batch: bool = False
    """Whether language models are asked through a provider's batches. For the same reason it enters no step key."""
    select: Selection = field(default_factory=Selection)
    """The neurons of each layer that language models are asked about."""


@dataclass(frozen=True)
class Project:
    """Everything an asset is defined from."""

    n_neurons: tuple[int, ...]
    """Neurons of each layer of the subject."""
    choices: Choices
    code: Mapping[str, Any]
    """Package version, git commit and whether the tree was changed: recorded with every write."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions of what computes: recorded, never compared."""

    @property
    def layers(self) -> dg.StaticPartitionsDefinition:
        """Keys `L00`, `L01`, ..."""
        return dg.StaticPartitionsDefinition([layer_key(layer) for layer in range(len(self.n_neurons))])

    @property
    def neurons(self) -> dg.MultiPartitionsDefinition:
        """Keys `L05|N0131`; the neuron axis is as long as the widest layer."""
        return dg.MultiPartitionsDefinition(
            {
                "layer": self.layers,
                "neuron": dg.StaticPartitionsDefinition([neuron_key(n) for n in range(max(self.n_neurons, default=1))]),
            }
        )


def layer_key(layer: int) -> str:
    """The partition key of a layer, such as `L05`."""
    return f"L{layer:02d}"


def neuron_key(neuron: int) -> str:
    """The key of a neuron within its layer, such as `N0131`."""
    return f"N{neuron:04d}"


def neuron_name(layer: int, neuron: int) -> str:
    """The partition key of one neuron, such as `L05|N0131`."""
    return f"{layer_key(layer)}|{neuron_key(neuron)}"


def parse_key(key: str) -> tuple[int, int | None]:
    """Layer and neuron of a partition key; the neuron is None for the key of a layer."""
    layer, _, neuron = key.partition("|")
    return int(layer[1:]), int(neuron[1:]) if neuron else None
