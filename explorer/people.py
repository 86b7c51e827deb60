"""People: what they think of explanations, and the explanations that they write themselves.

Verdicts are rows of `reviews`. An explanation of one's own is noted in a file (JSONL) that `--human-explanations` reads, so
that it is simulated and scored by the same run, in the same way, as those of language models.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import polars as pl

from explorer.index import Index
from explorer.kept import Kept
from pipeline import human, reviews
from pipeline.errors import SettingsError
from pipeline.human import Statement
from resources.delta import collect
from resources.people import statements

FILE = "neuronledger-people.jsonl"
"""In the project's folder, where the settings name no other."""
SHOWN = 200
_ONE_AT_A_TIME = Lock()


class Verdicts:
    """The reviews of a lake."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def _all(self) -> pl.DataFrame:
        return self._kept.once("reviews", ["reviews"], lambda: self._kept.lake.read("reviews"))

    def said_of(self, layer: int, neuron: int) -> dict[str, list[dict[str, Any]]]:
        """The standing verdicts on each explanation of one neuron."""
        if self._all().is_empty():
            return {}
        mine = self._all().filter((pl.col("layer") == layer) & (pl.col("neuron") == neuron))
        found: dict[str, list[dict[str, Any]]] = {}
        for row in reviews.standing(mine).iter_rows(named=True):
            said = {name: row[name] for name in ("verdict", "note", "author", "identity")}
            found.setdefault(row["explanation_id"], []).append(said | {"at": row["at"].isoformat(timespec="seconds")})
        return found

    def add(self, layer: int, neuron: int, given: Mapping[str, str]) -> None:
        """Keep the verdict of a form.

        Raises:
            ReviewError: the neuron has no such explanation, or the verdict, note or author are of no use.
        """
        said = self._kept.lake.scan("explanations", layer=layer, neurons=[neuron])
        found = collect(said.filter(pl.col("explanation_id") == given.get("explanation", "")).select("identity"))
        if found.is_empty():
            raise reviews.ReviewError(f"neuron {layer}:{neuron} has no such explanation any more; load its page again")
        row = reviews.row(
            layer=layer, neuron=neuron, explanation=found.item(0, "identity"), explanation_id=given["explanation"],
            verdict=given.get("verdict", ""), note=given.get("note", ""), author=given.get("author", ""), at=datetime.now(UTC).isoformat(timespec="microseconds"),
        )  # fmt: skip
        self._kept.lake.add("reviews", row, record={})
        self._kept.look_again()

    def beside(self, index: Index) -> dict[str, Any]:
        """All verdicts beside the scores of what they are on."""
        known, scores = self._all(), index.explanations.select("explanation_id", "text", "value")
        latest = reviews.standing(known).sort("at", descending=True).head(SHOWN)
        rows = latest.join(scores, on="explanation_id", how="left", maintain_order="left")
        return {
            "count": len(known),
            "agreement": reviews.agreement(known, scores).to_dicts(),
            "ordered": reviews.ordered(known, scores),
            "rows": [{**row, "at": row["at"].isoformat(timespec="seconds")} for row in rows.iter_rows(named=True)],
        }


class People:
    """The file that people's explanations are noted in: the one of the settings, or `FILE` in the project's folder."""

    def __init__(self, file: Path | None, folder: Path, flags: Mapping[str, str]) -> None:
        self.path = file or folder / FILE
        self._flags = dict(flags)

    def state(self) -> tuple[int, int] | None:
        """Another one whenever the file is; None without one."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def of(self, layer: int, neuron: int, *, known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What is noted of one neuron and not in the lake yet, and the command that scores it."""
        from explorer.neuron_page import command

        scored = {(one["explainer"], one["text"]) for one in known if one["method"] == human.METHOD}
        try:
            noted, error = self._noted(), None
        except SettingsError as unreadable:
            noted, error = (), str(unreadable)
        mine = [one for one in noted if (one.layer, one.neuron) == (layer, neuron)]
        waiting = [{"text": one.text, "author": one.author} for one in mine if (one.author, one.text) not in scored]
        flags = self._flags | {"human-explanations": str(self.path)}
        return {
            "file": str(self.path),
            "error": error,
            "waiting": waiting,
            "command": command(f"run --neurons {layer}:{neuron}", flags)
            + ("" if "simulator" in flags or "explainer" in flags else " --simulator MODEL"),
        }

    def add(self, layer: int, neuron: int, given: Mapping[str, str]) -> None:
        """Note the explanation of a form, unless it is there.

        Raises:
            SettingsError: the explanation or the author are of no use, or the file is of another kind.
        """
        record = {
            "neuron": f"{layer}:{neuron}", "explanation": given.get("explanation", ""), "author": given.get("author", ""),
            "polarity": given.get("polarity") or "+",
        }  # fmt: skip
        wanted = human.statement(record)
        if self.path.suffix != ".jsonl":
            raise SettingsError(
                f"{self.path} is no .jsonl file, so nothing is added to it here; write the line yourself"
            )
        with _ONE_AT_A_TIME:
            if wanted in self._noted():
                return
            # Somebody may have written the last line by hand, without its end.
            before = self.path.read_bytes()[-1:] if self.path.is_file() else b""
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if before not in (b"", b"\n") else "") + json.dumps(record) + "\n")

    def _noted(self) -> Sequence[Statement]:
        """What the file holds; nothing if there is none, or it is empty.

        Raises:
            SettingsError: it cannot be read.
        """
        return statements(self.path) if self.path.is_file() and self.path.stat().st_size else ()
