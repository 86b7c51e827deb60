"""Search by meaning: explanations near a text, or near another one, by the vectors of `explanation_embeddings`.

The vectors are laid into one file that is mapped into memory (float32; it can be deleted at any time), made again when the
table changes. A text of a visitor is embedded by an encoder in this process alone: looking sends nothing anywhere.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from explorer.index import MOST_FOUND, SOURCES, Index, writable
from explorer.kept import Kept
from explorer.live import Live, NotAtHandError
from pipeline.meaning import nearest
from pipeline.ports import Encoder
from resources.delta import collect

TABLE = "explanation_embeddings"
LONGEST = 2_000
"""Letters of a text that is looked for."""


@dataclass(frozen=True)
class Vectors:
    """The vectors of one encoder for explanations of the index."""

    encoder: str
    fingerprint: str
    rows: NDArray[np.int64]
    """For each vector, the row of `Index.explanations`."""
    values: NDArray[np.float32]
    """(vector, width), each of length 1; mapped from a file."""
    without: int
    """Explanations with a text and without a vector of this encoder."""


class Meaning:
    """The vectors of a lake, and the encoder that texts to look for are embedded by; None where none was chosen."""

    def __init__(self, files: Path, look: Callable[[], Encoder] | None = None) -> None:
        self._files = files
        self._encoder: Live[Encoder] = Live(look)
        self.is_chosen = look is not None

    def beside(self, files: Path) -> "Meaning":
        """The same encoder, with the vectors of another lake, or of another time, in another folder."""
        found = Meaning(files)
        found._encoder, found.is_chosen = self._encoder, self.is_chosen
        return found

    def vectors(self, kept: Kept, index: Index) -> Vectors | None:
        """The vectors of the encoder that most explanations have one of; None without any."""
        return kept.once("vectors", [TABLE, *SOURCES], lambda: _made(kept, index, self._files))

    def find(self, kept: Kept, index: Index, text: str, *, patience: float | None) -> pl.DataFrame:
        """The explanations nearest to a text, with `match` from 0 and `closeness`, their cosine.

        Raises:
            NotAtHandError: there are no vectors, or no encoder that made them; why, and what to do.
            BusyError: the encoder is being loaded.
        """
        known = self.vectors(kept, index)
        if known is None:
            raise NotAtHandError(
                "No explanation of this lake has an embedding yet; `neuronledger embed --encoder local:demo` makes them."
            )
        if not self.is_chosen:
            raise NotAtHandError(
                f"The embeddings are of the encoder {known.encoder}; give --encoder {known.encoder} to search by meaning."
            )

        def embedded(encoder: Encoder) -> Any:
            if encoder.fingerprint() != known.fingerprint:
                raise NotAtHandError(
                    f"The encoder at hand ({encoder.name}) is not the one that made the embeddings ({known.encoder}); "
                    "`neuronledger embed` makes them again."
                )
            (vector,), _ = encoder.encode([text[:LONGEST]], run_id="search")
            return vector.values

        one = self._encoder.use(embedded, patience=patience)
        if one is None:
            raise NotAtHandError("The encoder gives no vector for this text.")
        return _near(known, index, one, most=MOST_FOUND)

    def like(self, kept: Kept, index: Index, explanation_id: str, *, most: int) -> pl.DataFrame | None:
        """The explanations nearest to one of the lake, itself first; None if it has no vector. Needs no encoder."""
        known = self.vectors(kept, index)
        if known is None:
            return None
        names = index.explanations.get_column("explanation_id").gather(known.rows)
        places = (names == explanation_id).arg_true()
        return None if places.is_empty() else _near(known, index, np.asarray(known.values[places[0]]), most=most)

    def close(self) -> None:
        """Wait for nothing more."""
        self._encoder.close()


def _near(known: Vectors, index: Index, one: NDArray[np.float32], *, most: int) -> pl.DataFrame:
    places, cosines = nearest(known.values, one, most=most)
    found = index.explanations[known.rows[places]]
    return found.with_columns(
        pl.Series("closeness", np.clip(cosines, -1, 1), dtype=pl.Float64),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("match"),
    )


def _made(kept: Kept, index: Index, folder: Path) -> Vectors | None:
    """The vectors in one file, in the order of the table; a layer is read at a time."""
    lake = kept.lake
    names = collect(
        lake.scan(TABLE)
        .filter(pl.col("vector").is_not_null())
        .select("layer", "encoder", "fingerprint", pl.col("vector").list.len().alias("width"))
    )
    if names.is_empty():
        return None
    counts = (
        names.group_by("encoder", "fingerprint", "width").len().sort("len", "fingerprint", descending=[True, False])
    )
    encoder, fingerprint, width, _ = counts.row(0)
    said = (
        index.explanations.with_row_index("row")
        .filter(pl.col("text").is_not_null())
        .select("row", "layer", "explanation_id")
    )
    folder = writable(folder)
    stamp = json.dumps([lake.uri, fingerprint, [lake.version(table) for table in (TABLE, *SOURCES)]])
    path = folder / f"vectors-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.npy"
    ours = (pl.col("fingerprint") == fingerprint) & (pl.col("vector").list.len() == width)
    places = collect(lake.scan(TABLE).filter(ours).select("layer", "explanation_id"))
    places = places.join(said, on=["layer", "explanation_id"], how="inner", maintain_order="left").sort("row")
    rows = places.get_column("row").cast(pl.Int64).to_numpy()
    if not path.exists():
        new = path.with_suffix(".new")
        values = np.lib.format.open_memmap(new, mode="w+", dtype=np.float32, shape=(len(rows), width))
        begin = 0
        for (layer,), mine in places.group_by("layer", maintain_order=True):
            vectors = collect(lake.scan(TABLE, layer=int(str(layer))).filter(ours).select("explanation_id", "vector"))
            ordered = mine.join(vectors, on="explanation_id", how="left", maintain_order="left").get_column("vector")
            values[begin : begin + len(mine)] = ordered.list.to_array(width).to_numpy()
            begin += len(mine)
        values.flush()
        del values
        new.replace(path)
        for other in folder.glob("vectors-*.npy"):
            if other != path:
                with suppress(OSError):
                    other.unlink()
    return Vectors(encoder, fingerprint, rows, np.lib.format.open_memmap(path, mode="r"), len(said) - len(rows))
