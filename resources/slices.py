"""A slice of a table: everything, one layer, or some neurons of one layer; in Delta's words and in those of polars."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.errors import LakeError
from pipeline.tables import Table

LARGEST_INDEX = 2**31 - 1


@dataclass(frozen=True)
class Slice:
    """Part of a table: everything, one layer, or some neurons of one layer.

    The only place where predicates are built, and from integers only: a text could smuggle in another predicate, and
    Delta rewrites NaN as 1.0 where a predicate reads floats.
    """

    layer: int | None = None
    neurons: tuple[int, ...] | None = None

    @classmethod
    def of(cls, table: Table, layer: int | None, neurons: Sequence[int] | None) -> "Slice":
        """The slice of a table.

        Raises:
            LakeError: the table has no layers or neurons, neurons come without a layer, or an index is none.
        """
        if layer is None and neurons is None:
            return cls()
        if not table.by_layer:
            raise LakeError(f"table `{table.name}` has no layers; leave out layer={layer!r} and neurons={neurons!r}")
        if layer is None:
            raise LakeError(f"neurons {neurons!r} of table `{table.name}` need a layer; a neuron is (layer, index)")
        if neurons is None:
            return cls(index(layer, "layer"))
        if "neuron" not in table.columns:
            raise LakeError(f"table `{table.name}` has no neurons; leave out neurons={neurons!r}")
        if not len(neurons):
            raise LakeError(f"no neurons of layer {layer} were named; name at least one, or leave out `neurons`")
        return cls(index(layer, "layer"), tuple(sorted({index(neuron, "neuron") for neuron in neurons})))

    @property
    def predicate(self) -> str | None:
        """The slice in Delta's SQL; None for everything."""
        if self.layer is None:
            return None
        if self.neurons is None:
            return f"layer = {self.layer:d}"
        if len(self.neurons) == 1:
            return f"layer = {self.layer:d} AND neuron = {self.neurons[0]:d}"
        return f"layer = {self.layer:d} AND neuron IN ({', '.join(f'{neuron:d}' for neuron in self.neurons)})"

    @property
    def expression(self) -> pl.Expr:
        """The slice for polars, in a form that lets it skip files and row groups."""
        if self.layer is None:
            return pl.lit(value=True)
        inside = pl.col("layer") == self.layer
        if self.neurons is None:
            return inside
        inside &= pl.col("neuron").is_between(self.neurons[0], self.neurons[-1])
        return inside & pl.col("neuron").is_in(self.neurons) if len(self.neurons) > 1 else inside

    def __str__(self) -> str:
        return self.predicate or "the whole table"


def index(value: int, what: str) -> int:
    """The value, if it can stand for a layer, a neuron or a version.

    Raises:
        LakeError: it is no integer, or none from 0 to the largest.
    """
    if type(value) is not int or not 0 <= value <= LARGEST_INDEX:
        raise LakeError(f"`{what}` (={value!r}) must be an integer from 0 to {LARGEST_INDEX}")
    return value
