"""Plain CSV: what is said of each neuron, how well, and its statistics, for spreadsheets and scripts.

A neuron is written `layer:neuron`. `import csv` reads `explanations.csv`. RFC 4180, UTF-8; a null is an empty field and an
empty text is quoted.
"""

import polars as pl

WRITTEN = ("explanations", "scores", "neuron_statistics")
NOT_CARRIED = (
    "lists: histograms, quantile boundaries, exemplars of an explanation",
    "records, exemplars and simulations; `export huggingface` has them",
)


def text(table: str, rows: pl.DataFrame, *, header: bool) -> str:
    """The rows of a table as CSV, without those columns that are lists."""
    names = [name for name, kind in rows.schema.items() if not kind.is_nested() and name not in ("layer", "neuron")]
    neuron = pl.format("{}:{}", "layer", "neuron").alias("neuron")
    if table == "explanations":
        first = [pl.col("text").alias("explanation"), pl.col("explainer").alias("author")]
        names = [name for name in names if name not in ("text", "explainer")]
        frame = rows.select(neuron, *first, *names)
    else:
        frame = rows.select(neuron, *names)
    return frame.write_csv(include_header=header, line_terminator="\r\n", quote_style="necessary")


def words(imported: pl.DataFrame) -> str:
    """Imported explanations in the form of `--human-explanations`: who wrote them, or the source if that is not known.

    That form refuses control characters, so each is a space here.
    """
    author = pl.when(pl.col("explainer") == "unknown").then(pl.col("source")).otherwise(pl.col("explainer"))
    frame = imported.filter(pl.col("text").is_not_null()).sort(
        "layer", "neuron", "polarity", "source", "explanation_id"
    )
    return frame.select(
        pl.format("{}:{}", "layer", "neuron").alias("neuron"), _plain(pl.col("text")).alias("explanation"),
        _plain(author).alias("author"), "polarity",
    ).write_csv(line_terminator="\r\n", quote_style="necessary")  # fmt: skip


def _plain(words: pl.Expr) -> pl.Expr:
    return words.str.replace_all(r"[\x00-\x1f\x7f]", " ")
