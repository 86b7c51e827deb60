"""The activations that delphi caches, as records: `latents/{hookpoint}/{first}_{last}.safetensors`.

    locations    whole numbers [n, 3]: window, position, latent counted from the file's first
    activations  numbers [n], those further than 1e-5 from zero; all others are zero
    tokens       ids [window, position]

A file may be larger than memory, so it is gone through in pieces, once to find the strongest windows of some latents and
once to fetch them. The twenty strongest windows of each latent become records, with the mean and the variance over all
tokens; what else fired is counted. Tokens are ids unless the tokenizer is at hand.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import imports
from pipeline.errors import FormError
from pipeline.imports import Found

WINDOWS = 20
"""Records kept of a latent."""


class Cached(Protocol):
    """One file of sparse activations."""

    windows: int
    length: int
    """Tokens of a window."""

    def pieces(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Locations and activations, a few million at a time."""
        ...

    def tokens(self, window: int) -> Sequence[int]:
        """The token ids of one window."""
        ...


def parse(
    cached: Cached, match: re.Match[str], latents: range, *, file: str, words: Sequence[str] | None = None
) -> Found:
    """The rows of some of a file's latents, counted as the model counts them. `words[i]` is token i, if that is known.

    Raises:
        FormError: a location is outside the file's windows or latents or is there twice, or a value is not finite.
    """
    first, last = int(match["first"]), int(match["last"])
    at = {"layer": int(match["layer"])}
    found, n_tokens = Found(file), cached.windows * cached.length
    parts = [
        some.group_by("latent", "window").agg(
            pl.len().alias("firings"), pl.col("value").max().alias("peak"), pl.col("value").sum().alias("sum"),
            pl.col("value").pow(2).sum().alias("squares"),
        )
        for some in _some(cached, latents, first=first, last=last)
    ]  # fmt: skip
    if not parts:
        return found
    of_windows = (
        pl.concat(parts)
        .group_by("latent", "window")
        .agg(pl.col("firings", "sum", "squares").sum(), pl.col("peak").max())
    )
    of_latents = of_windows.group_by("latent").agg(
        pl.col("firings", "sum", "squares").sum(), pl.col("peak").max(), pl.len().alias("windows")
    )
    for latent, firings, total, squares, peak, windows in of_latents.sort("latent").iter_rows():
        mean = total / n_tokens
        counted = {"firings": firings, "windows": windows, "tokens": n_tokens, "maximum": peak}
        found.add(
            "imported_neurons", **at, neuron=latent, mean=mean, variance=max(squares / n_tokens - mean**2, 0.0),
            original=imports.written(counted, "the counts"),
        )  # fmt: skip
    strongest = of_windows.filter(pl.col("peak") > 0).sort("latent", "peak", "window", descending=[False, True, False])
    chosen = strongest.group_by("latent", maintain_order=True).head(WINDOWS).select("latent", "window", "peak")
    chosen = chosen.with_row_index("row")
    dense = np.zeros((len(chosen), cached.length), dtype=np.float32)
    seen = np.zeros(dense.shape, dtype=bool)
    for some in _some(cached, latents, first=first, last=last):
        rows = some.join(chosen.select("row", "latent", "window"), on=["latent", "window"])
        where = rows.get_column("row").to_numpy(), rows.get_column("place").to_numpy()
        dense[where] = rows.get_column("value").to_numpy()
        if seen[where].any() or rows.select("row", "place").is_duplicated().any():
            raise FormError("a location is there twice")
        seen[where] = True
    sequences = {
        window: found.sequence(_spelled(cached.tokens(window), words))
        for window in chosen.get_column("window").unique()
    }
    ranks = chosen.select(pl.int_range(pl.len()).over("latent")).to_series()
    for (row, latent, window, peak), rank in zip(chosen.iter_rows(), ranks, strict=True):
        found.add(
            "imported_records", **at, neuron=latent, polarity="+", stratum="top", rank=rank, split="none",
            sequence_id=sequences[window], peak=peak, activations=dense[row],
        )  # fmt: skip
    return found


def _some(cached: Cached, latents: range, *, first: int, last: int) -> Iterator[pl.DataFrame]:
    """The activations of some latents piece by piece: latent, window, place, value."""
    for locations, activations in cached.pieces():
        if not len(locations):
            continue
        window, place, latent = (locations[:, column].astype(np.int64) for column in range(3))
        limits = (
            (window, cached.windows, "window"),
            (place, cached.length, "position"),
            (latent, last - first + 1, "latent"),
        )
        for values, limit, name in limits:
            if values.min() < 0 or values.max() >= limit:
                raise FormError(
                    f"a location's {name} must be from 0 to {limit - 1}, not {values.min()} to {values.max()}"
                )
        values = activations.astype(np.float32)
        if not np.isfinite(values).all():
            raise FormError("activations holds a number that is not finite")
        wanted = (latent + first >= latents.start) & (latent + first < latents.stop)
        yield pl.DataFrame(
            {
                "latent": latent[wanted] + first,
                "window": window[wanted],
                "place": place[wanted],
                "value": values[wanted].astype(np.float64),
            }
        )


def _spelled(ids: Sequence[int], words: Sequence[str] | None) -> list[str]:
    if words is None:
        return [str(token) for token in ids]
    if strangers := [token for token in ids if not 0 <= token < len(words)]:
        raise FormError(f"token {strangers[0]} is none of the tokenizer's {len(words):,}")
    return [words[token] for token in ids]
