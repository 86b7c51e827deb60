"""The terminal: how neurons, layers and progress look there.

Text of the corpus and of language models is never trusted: control characters are shown as symbols, so that no text can
move the cursor or change colours.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from explorer.neuron import Excerpt, Neuron, Said, Side
from pipeline.summary import REASONED, best, by_layer, distribution
from pipeline.tables import MISSING

if TYPE_CHECKING:
    from assets.plan import Planned

AROUND = 14
"""Tokens shown on each side of the strongest one where there is little room."""

JOINED = {
    "input_positive": "excited by tokens",
    "input_negative": "inhibited by tokens",
    "output_positive": "promotes the tokens",
    "output_negative": "suppresses the tokens",
    "upstream_positive": "excited by neurons",
    "upstream_negative": "inhibited by neurons",
    "downstream_positive": "excites the neurons",
    "downstream_negative": "inhibits the neurons",
}
CONNECTIONS = 10
"""Connections shown of each kind and sign; all are in the JSON."""

SYMBOLS = {
    "fresh": "[green]fresh[/]",
    "stale": "[yellow]stale[/]",
    "missing": "[dim]missing[/]",
    "failed": "[red]failed[/]",
}


class TerminalProgress:
    """Bars on standard error where that is a terminal, nothing elsewhere but a line when a step begins."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(), TextColumn("{task.description:<12}"), BarColumn(bar_width=30), MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"), TimeElapsedColumn(), console=console, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._waiting: tuple[str, int] | None = None

    def __enter__(self) -> "TerminalProgress":
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Bars that never began would end with an empty line.
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, step: str, done: int, total: int, detail: str = "") -> None:
        """Move the bar of a step."""
        if not self._console.is_terminal:
            # Hours may pass with nothing but this.
            if step == "batch" and (detail, done) != self._waiting:
                self._waiting = detail, done
                self.say(f"{detail}, {done:,} of {total:,}")
            return
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, detail=detail, total=total or None)
        self._bars.update(self._tasks[step], completed=done, total=total or None, detail=detail)

    def say(self, text: str) -> None:
        """A line that stays: what is being made now. Bars of the step before are taken away."""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
        self._console.print(Text(f"  {text}", style="dim"))


def harmless(text: str) -> str:
    """Text that a terminal can print as it stands: white space made visible, control characters as symbols."""
    return "".join(_SHOWN.get(char) or (char if _is_printable(char) else "·") for char in text)


_SHOWN = {"\n": "↵", "\t": "⇥", "\r": "↵", "\x1b": "␛", "\x00": "␀"}


def _is_printable(char: str) -> bool:
    # Cf holds the marks that reverse the direction of text, Co and Cn what no font shows.
    return unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def excerpt(shown: Excerpt, *, around: int | None = None, colour: bool = True) -> Text:
    """The tokens of an excerpt, those with activation on a green ground; between « » where there is no colour."""
    peak = max(range(len(shown.tokens)), key=lambda place: shown.scaled_activations[place])
    first, last = 0, len(shown.tokens)
    if around is not None:
        first, last = max(0, peak - around), min(len(shown.tokens), peak + around + 1)
    text = Text("… " if first else "", overflow="fold")
    text.append(marked(shown.tokens[first:last], shown.scaled_activations[first:last], colour=colour))
    if last < len(shown.tokens):
        text.append(" …")
    return text


def marked(tokens: Sequence[str], steps: Sequence[int], *, colour: bool) -> Text:
    """Tokens with their step of 0 to 10, as `excerpt` shows them."""
    text = Text(overflow="fold")
    for token, scaled in zip(tokens, steps, strict=True):
        words = harmless(token)
        if not scaled:
            text.append(words)
        elif colour:
            # From a pale to a strong green; black on it keeps a contrast above 7 to 1 at both ends.
            text.append(words, style=f"black on rgb({225 - 14 * scaled},{246 - 4 * scaled},{225 - 14 * scaled})")
        elif scaled < 5:
            text.append(words)
        else:
            bare = words.lstrip() or words
            text.append(f"{words.removesuffix(bare)}«{bare}»")
    return text


def layers(statistics: pl.DataFrame, explanations: pl.DataFrame, scores: pl.DataFrame) -> Table:
    """One line for each layer: how far it has come, and how well it is explained."""
    rows = by_layer(statistics, explanations, scores)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("layer", justify="right")
    for name in rows.columns[1:]:
        table.add_column(name, justify="right")
    for row in rows.iter_rows():
        table.add_row(
            *("-" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" for cell in row)
        )
    return table


def score_distribution(scores: pl.DataFrame, method: str) -> RenderableType:
    """How the main scores of one method spread between 0 and 1, as a line of bars."""
    counts, below = distribution(scores, method)
    most = max([*counts, 1])
    bars = "".join(" ▁▂▃▄▅▆▇█"[min(8, -(-8 * count // most))] for count in counts)
    return Text.assemble((f"{method:<24}", "bold"), "0 ", (bars, "green"), " 1", (f"   {below:,} below 0", "dim"))


def best_neurons(neurons: Sequence[Neuron], scores: pl.DataFrame, explanations: pl.DataFrame, *, colour: bool) -> Group:
    """The best-explained neurons, each with its explanation and two excerpts."""
    parts: list[RenderableType] = []
    found = best(scores, explanations, count=len(neurons))
    for neuron, row in zip(neurons, found.iter_rows(named=True), strict=True):
        parts.append(
            Text.assemble(
                (f"{neuron.layer}:{neuron.neuron}", "bold cyan"),
                f"  score {row['value']:.3f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]  {row['method']}",
            )
        )
        parts.append(Padding(Text(harmless(row["text"] or "")), (0, 0, 0, 4)))
        sides = [side for side in neuron.sides if side.polarity == row["polarity"]]
        parts.extend(
            Padding(excerpt(shown, around=AROUND, colour=colour), (0, 0, 0, 4))
            for shown in [
                shown for side in sides for shown in side.excerpts if shown.split == "score" and shown.stratum == "top"
            ][:2]
        )
        parts.append(Text())
    return Group(*parts)


def neuron(shown: Neuron, *, colour: bool) -> Group:
    """A whole neuron: statistics, both sides, and the chain of writes behind it."""
    numbers = shown.statistics
    parts: list[RenderableType] = [
        Text.assemble((f"neuron {shown.layer}:{shown.neuron}", "bold cyan"), f"  input of {shown.site}"),
        Text(
            f"over {numbers['n_tokens']:,} tokens of {numbers['n_sequences']:,} sequences: mean {numbers['mean']:.4g}, "
            f"variance {numbers['variance']:.4g}, from {numbers['minimum']:.4g} to {numbers['maximum']:.4g}, "
            f"above zero at {numbers['fraction_positive']:.1%} of tokens" + (", dead" if numbers["dead"] else "")
        ),
    ]
    for side in shown.sides:
        parts.extend(_side(side, colour=colour, named=len(shown.sides) > 1))
    if shown.connections is not None:
        parts.append(Text("\nconnections by the weights alone", style="bold"))
        parts.append(_connections(shown.connections))
    parts.append(Text("\nwhere it came from", style="bold"))
    parts.append(_chain(shown.chain))
    return Group(*parts)


def states(rows: pl.DataFrame) -> Table:
    """The state of every table by layer."""
    tables = rows.get_column("table").unique(maintain_order=True).to_list()
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("table")
    at = rows.get_column("layer").drop_nulls().unique().sort().to_list()
    for layer in at:
        table.add_column(f"layer {layer}")
    for name in tables:
        found = {row["layer"]: row for row in rows.filter(pl.col("table") == name).iter_rows(named=True)}
        if None in found:
            table.add_row(name, SYMBOLS[found[None]["status"]])
        else:
            table.add_row(name, *(SYMBOLS[found[layer]["status"]] if layer in found else "" for layer in at))
    return table


def causes(rows: pl.DataFrame) -> list[Text]:
    """Why slices are not fresh: one line for each different cause."""
    lines: list[Text] = []
    bad = rows.filter(pl.col("cause") != "")
    for (table, status, cause, root), group in bad.group_by("table", "status", "cause", "root", maintain_order=True):
        where = ", ".join(str(layer) for layer in group.get_column("layer").drop_nulls())
        why = f"{cause} ({root})" if root else str(cause)
        lines.append(Text(f"{table}{f' of layer {where}' if where else ''} {status}: {harmless(why)}"))
    for row in rows.filter(pl.col("recomputed").list.len() > 0).iter_rows(named=True):
        some = ", ".join(f"{row['layer']}:{neuron}" for neuron in row["recomputed"][:10])
        lines.append(Text(f"{row['table']}: recomputed alone {some}", style="dim"))
    return lines


def of_neurons(rows: pl.DataFrame, layer: int, *, most: int = 50) -> Group:
    """How many neurons of a layer are in each state, and those that are not fresh with their causes."""
    counts = dict(rows.group_by("status", maintain_order=True).len().iter_rows())
    lines = [Text(f"layer {layer}: " + ", ".join(f"{count:,} {status}" for status, count in counts.items()))]
    bad = rows.filter(pl.col("status") != "fresh")
    for (status, cause), group in bad.group_by("status", "cause", maintain_order=True):
        named = ", ".join(f"{layer}:{neuron}" for neuron in group.get_column("neuron")[:most])
        more = len(group) - most
        lines.append(Text(f"{status}: {harmless(str(cause))}: {named}{f' and {more:,} more' if more > 0 else ''}"))
    if alone := rows.filter("recomputed").get_column("neuron").to_list():
        lines.append(
            Text("recomputed alone: " + ", ".join(f"{layer}:{neuron}" for neuron in alone[:most]), style="dim")
        )
    return Group(*lines)


def without_value(rows: pl.DataFrame) -> Table:
    """How many rows have no value and why, by layer, of how many; the commonest reason of each table first."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("rows without a value")
    table.add_column("because")
    layers = rows.get_column("layer").unique().sort().to_list()
    for layer in layers:
        table.add_column(f"layer {layer}", justify="right")
    order = rows.group_by("table", "missing_because").agg(pl.col("rows").sum())
    order = order.join(pl.DataFrame({"table": REASONED, "place": range(len(REASONED))}), on="table")
    order = order.sort("place", "rows", "missing_because", descending=[False, True, False])
    for name, reason in order.select("table", "missing_because").iter_rows():
        chosen = rows.filter(table=name, missing_because=reason)
        found = {layer: f"{count:,} of {of:,}" for layer, count, of in chosen.select("layer", "rows", "of").iter_rows()}
        table.add_row(name, reason, *(found.get(layer, "") for layer in layers))
    return table


def reasons(rows: pl.DataFrame) -> list[Text]:
    """What the reasons mean, a line each."""
    return [Text(f"{reason}: {MISSING[reason]}", style="dim") for reason in sorted(set(rows["missing_because"]))]


def money(usd: float | None) -> str:
    """US dollars, small ones with the digits that they need."""
    if usd is None:
        return "unknown"
    return f"${usd:,.2f}" if usd >= 1 or not usd else f"${usd:.4f}"


def planned_total(stages: "Sequence[Planned]", *, concurrency: int, batch: bool = False) -> dict[str, Any]:
    """All stages together; US dollars and seconds are None if those of any are unknown, as the time of batches is."""
    costs, seconds = [stage.cost_usd for stage in stages], [stage.seconds for stage in stages]
    return {
        "requests": sum(stage.requests for stage in stages),
        "kept": sum(stage.kept for stage in stages),
        "to_send": sum(stage.requests - stage.kept for stage in stages),
        "prompt_tokens": sum(stage.prompt_tokens for stage in stages),
        "completion_tokens": sum(stage.completion_tokens for stage in stages),
        "cost_usd": None if None in costs else sum(cost for cost in costs if cost is not None),
        "seconds": None if batch or None in seconds else sum(one for one in seconds if one is not None) / concurrency,
        "batch": batch,
        "passes": sum(stage.passes for stage in stages),
    }


def plan(stages: "Sequence[Planned]", total: Mapping[str, Any]) -> Group:
    """What would be asked, one line for each table and layer."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("layer", justify="right")
    table.add_column("table")
    table.add_column("model")
    for name in ("requests", "kept", "to send", "prompt tokens", "reply tokens", "cost"):
        table.add_column(name, justify="right")
    for stage in stages:
        counts = (stage.requests, stage.kept, stage.requests - stage.kept, stage.prompt_tokens, stage.completion_tokens)
        table.add_row(
            str(stage.layer), stage.table, harmless(stage.model), *(f"{count:,}" for count in counts),
            money(stage.cost_usd),
        )  # fmt: skip
    sums = [total[name] for name in ("requests", "kept", "to_send", "prompt_tokens", "completion_tokens")]
    table.add_row("", "together", "", *(f"{count:,}" for count in sums), money(total["cost_usd"]), style="bold")
    guess = (
        "Tokens are a first guess from the lengths of texts, and those of replies from the longest that are allowed; once "
        "some replies of the model are kept, by what these took."
    )
    if stages and total["seconds"] is not None:
        guess = f"Tokens are estimated by what kept replies took; so is the time, about {total['seconds']:,.0f} s."
    lines = [Text(guess, style="dim", no_wrap=True, overflow="ignore")]
    if total["batch"]:
        words = "The cost is that of batches. A provider takes up to a day for each, and one stage waits for the one before."
        lines.append(Text(words, style="dim", no_wrap=True, overflow="ignore"))
    if total["passes"]:
        words = f"Ablations take about {total['passes']:,} passes of the subject over one text each: they cost no money, and time."
        lines.append(Text(words, style="dim", no_wrap=True, overflow="ignore"))
    return Group(table, *lines, Text("Nothing was sent."))


def cost(rows: pl.DataFrame, total: Mapping[str, Any]) -> Group:
    """What was paid."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in rows.columns:
        table.add_column(
            name.replace("_", " ").removesuffix(" usd"), justify="left" if name in {"table", "model"} else "right"
        )
    for row in rows.iter_rows(named=True):
        cells = (harmless(cell) if isinstance(cell, str) else f"{cell:,}" for cell in list(row.values())[:-1])
        table.add_row(*cells, money(row["cost_usd"]))
    said = (
        f"{total['requests']:,} replies are kept, each paid for once: {total['prompt_tokens']:,} prompt tokens, "
        f"{total['completion_tokens']:,} reply tokens, {money(total['cost_usd'])}"
    )
    if total["in_batches"]:
        said += f"; {total['in_batches']:,} of them came in batches, at the price of batches"
    if total["cost_usd"] is None:
        said += " (the price of a model, or the tokens of a reply, are not known; see --prices)"
    return Group(table, Text(said, no_wrap=True, overflow="ignore"))


def _side(side: Side, *, colour: bool, named: bool) -> list[RenderableType]:
    title = f"\nexplanations, polarity {side.polarity}" if named else "\nexplanations"
    parts: list[RenderableType] = [Text(title, style="bold")]
    for said in side.explanations:
        parts.append(
            Text.assemble((said.method, "cyan"), "" if said.explainer == "none" else f" by {harmless(said.explainer)}")
        )
        words = harmless(said.text) if said.text is not None else f"none, because {said.missing_because}"
        parts.append(Padding(Text(words, style="" if said.text is not None else "yellow"), (0, 0, 0, 4)))
        parts.append(Padding(_scores(said), (0, 0, 0, 4)))
    if side.tokens:
        words = ", ".join(
            f"{harmless(token['text']).strip()!r} {token['mean']:.3g} ({token['count']}x)" for token in side.tokens
        )
        parts += [
            Text("\ntokens with the highest mean activation, on documents that are not scored", style="bold"),
            Text(words),
        ]
    for split, title in (("explain", "shown to explainers"), ("score", "scored, never shown")):
        chosen = [shown for shown in side.excerpts if shown.split == split]
        if not chosen:
            continue
        parts.append(Text(f"\nexcerpts {title}", style="bold"))
        for shown in sorted(chosen, key=lambda one: (one.stratum != "top", one.rank)):
            strongest = max(shown.activations) if side.polarity == "+" else min(shown.activations)
            parts.append(
                Text(f"{shown.stratum} {shown.rank}  {strongest:.3g}  {harmless(shown.document_id)}", style="dim")
            )
            parts.append(Padding(excerpt(shown, colour=colour), (0, 0, 0, 4)))
    return parts


def _connections(connections: Mapping[str, Sequence[dict[str, Any]] | None]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for kind, title in JOINED.items():
        joined = connections[kind]
        if joined is None:
            words = "not defined for this model"
        else:
            words = ", ".join(f"{_name(other)} {other['strength']:.3g}" for other in joined[:CONNECTIONS]) or "none"
        table.add_row(title, Text(words, style="" if joined else "dim"))
    return table


def _name(other: Mapping[str, Any]) -> str:
    """A neuron or a token in words; a token without a text has its number only."""
    if "neuron" in other:
        return f"{other['layer']}:{other['neuron']}"
    text = other["text"]
    return f"token {other['token_id']}" if text is None else repr(harmless(text).strip())


def _scores(said: Said) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for score in said.scores:
        if score["value"] is None:
            value = f"none, because {score['missing_because']}"
        else:
            interval = "" if score["ci_low"] is None else f" [{score['ci_low']:.3f}, {score['ci_high']:.3f}]"
            chance = "" if score["p_value"] is None else f" p {score['p_value']:.3f}"
            value = f"{score['value']:.3f}{interval}{chance}"
        failed = f", {score['n_failed']} failed" if score["n_failed"] else ""
        table.add_row(
            score["scorer"],
            score["split"],
            value,
            f"{score['n_sequences']} sequences, {score['n_tokens']} tokens{failed}",
        )
    return table


def _chain(chain: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("table", "version", "made at", "content", "made from", "run"):
        table.add_column(name)
    for link in chain:
        inputs = ", ".join(f"{name} {_short(entry['content_hash'])}" for name, entry in link["inputs"].items())
        table.add_row(
            link["table"] + (" (alone)" if link["alone"] else ""), str(link["version"]), link["finished_at"],
            _short(link["content_hash"]), inputs, link["run_id"][:8],
        )  # fmt: skip
    return table


def _short(tagged: str) -> str:
    return tagged.removeprefix("sha256:")[:8]
