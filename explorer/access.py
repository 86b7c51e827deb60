"""Access from Python: a lake as an object, whose tables are lazy polars frames and whose neurons are found by name.

    from neuronledger import open_lake

    lake = open_lake("lake/demo")
    lake.table("scores")     every row, read when it is collected
    lake["5:131"]            all that the lake knows of one neuron

`docs/reading.md` has recipes, for other readers too. Nothing here writes.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from explorer import neuron as neurons
from explorer.neuron import Neuron
from pipeline.errors import LakeError
from pipeline.tables import TABLES
from resources.delta import DeltaLake


class Opened:
    """A lake, to be read. `uri` is its folder or object-store prefix."""

    def __init__(self, lake: DeltaLake) -> None:
        self._lake = lake
        self.uri = lake.uri

    def table(self, name: str, *, layer: int | None = None, version: int | None = None) -> pl.LazyFrame:
        """The rows of a table, or of one layer of it, as they are now or were at a Delta version.

        Columns and units are those of `pipeline.tables`. A table that was not made yet has no rows. Filters on `layer`
        and `neuron` skip the files that they rule out.

        Raises:
            LakeError: there is no such table or version, or the table has no layers.
        """
        return self._lake.scan(name, layer=layer, version=version)

    def files(self, name: str, *, layer: int | None = None) -> list[str]:
        """The Parquet files that hold a table now, for readers that know no Delta. `layer` is in their folders' names.

        Raises:
            LakeError: there is no such table, or it has no layers.
        """
        return self._lake.files(name, layer=layer)

    def __getitem__(self, name: str) -> Neuron:
        """The neuron of a name such as `5:131`: statistics, explanations, scores, texts, and where they came from.

        Raises:
            SettingsError: the name is not of this form.
            NeuronLedgerError: the lake has no such neuron.
        """
        return neurons.read(self._lake, *neurons.parse(name))

    def __iter__(self) -> Iterator[str]:
        """The names of the tables that have been made."""
        return (name for name in TABLES if self._lake.version(name) is not None)

    def __repr__(self) -> str:
        return f"<lake {self.uri}: {', '.join(self) or 'nothing yet'}>"


def open_lake(uri: str | Path) -> Opened:
    """Open the lake in a folder, or under a prefix such as `s3://bucket/lake`.

    Raises:
        LakeError: the address is no lake's, or nothing was ever written there.
    """
    opened = Opened(DeltaLake(uri))
    if not any(True for _ in opened):
        raise LakeError(f"there is no lake at {opened.uri}; `neuronledger run` prints where it puts its tables")
    return opened
