"""The asset `layer_summary`: all layers side by side, with the plots that assets partitioned by layer cannot show."""

import base64

import dagster as dg
import polars as pl

from assets.project import layer_key
from assets.spec import OWNERS
from pipeline.plots import bars
from pipeline.ports import Lake
from pipeline.provenance import frame_hash
from pipeline.summary import by_layer


def define() -> dg.AssetsDefinition:
    """The asset; it is the same for every project."""

    @dg.asset(
        group_name="layers",
        code_version="1",
        deps=["scores"],
        description="All layers side by side: neurons captured, explained and scored, and how well.",
        kinds={"polars"},
        owners=OWNERS,
    )
    def layer_summary(lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult:
        tables = (
            lake.read("neuron_statistics").select("layer", "neuron", "dead"),
            lake.read("explanations").select("layer", "neuron", "text"),
            lake.read("scores").select("layer", "neuron", "method", "scorer", "split", "value"),
        )
        rows = by_layer(*tables)
        medians = {
            name.removesuffix(" median"): rows.get_column(name).to_list() for name in rows.columns if "median" in name
        }
        labels = [layer_key(layer) for layer in rows.get_column("layer")]
        plot = base64.b64encode(
            bars("Median score of each layer (ev_correlation, top and random)", medians, labels).encode()
        )
        return dg.MaterializeResult(
            data_version=dg.DataVersion(frame_hash(rows, key=["layer"])),
            metadata={
                "plot": dg.MetadataValue.md(
                    f"![Median score of each layer](data:image/svg+xml;base64,{plot.decode()})"
                ),
                "layers": dg.MetadataValue.md(_table(rows)),
                "dagster/row_count": len(rows),
                "neurons/captured": int(rows.get_column("captured").sum()),
                "neurons/scored": int(rows.get_column("scored").sum()),
            },
        )

    return layer_summary


def _table(rows: pl.DataFrame) -> str:
    """The rows as a markdown table. They hold numbers only, no text of the corpus."""
    lines = ["| " + " | ".join(rows.columns) + " |", "|" + "---|" * len(rows.columns)]
    for row in rows.iter_rows():
        cells = ("" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
