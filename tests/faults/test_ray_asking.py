"""Neurons explained, simulated and judged on a real cluster, of which a worker, a node and a driver are killed in turn.

What comes of it are the tables of one machine.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from endpoint import Endpoint

from assets import explanations, judgements, pieces, run, scores, simulations
from assets.project import Choices, Project
from benchmarks.asking import of_layer, text, windows
from benchmarks.scale import filled, lists
from pipeline.ports import Answer, Request, Usage
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from pipeline.testing import scripted
from resources.delta import DeltaLake
from resources.journal import Journal
from resources.language import OpenAICompatible
from resources.machines import RayMachines, ThisMachine

NEURONS, AT_ONCE = 12, 4
HOPS = ("explanations", "simulations", "judgements", "scores")
CHOICES = Choices(
    windows=2_000, length=64, seed=0, explainer="scripted", simulator="scripted",
    scorers=("detection", "fuzzing", "intruder"),
)  # fmt: skip
really_explained = explanations.explained


def killed_once(work: Any, piece: tuple[pl.DataFrame, Mapping[str, pl.DataFrame]], answer: Answer) -> Any:
    """Explains, but the process that is at it first is killed after some of its replies were kept."""
    mark = Path(os.environ["KILLED_ONCE"] + "-while-asking")

    def interrupted(requests: Any) -> tuple[Any, Usage]:
        if not mark.exists():
            mark.touch()
            answer(requests[:2])
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(requests)

    return really_explained(work, piece, interrupted)


def with_quiet(exemplars: pl.DataFrame) -> pl.DataFrame:
    """The records that a forward pass would have kept of these texts, and two of other texts on which a neuron is quiet."""
    scored = exemplars.filter(split="score").unique(["neuron", "sequence_id"], keep="first", maintain_order=True)
    others = pl.DataFrame({"neuron": [n for n in range(NEURONS) for _ in "ab"]}).with_columns(
        sequence_id=pl.Series([f"{2 * (500 + place):016x}" for place in range(2 * NEURONS)]),
        activations=lists(np.full((2 * NEURONS, 64), -0.1, dtype=np.float32)),
    )
    rows = pl.concat([scored.select("neuron", "sequence_id", "activations"), others.cast({"neuron": pl.Int32})])
    return filled("activations", {
        "layer": np.zeros(len(rows), dtype=np.int32), "neuron": rows["neuron"], "stratum": ["random"] * len(rows),
        "rank": np.arange(len(rows), dtype=np.int32), "sequence_id": rows["sequence_id"],
        "activations": rows["activations"], "peak": rows["activations"].list.max(),
        "identity": [f"record {place}" for place in range(len(rows))], "run_id": ["r"] * len(rows),
    })  # fmt: skip


class OneLayer:
    """Layer 0 of a made-up subject, asked about at an endpoint of its own."""

    def __init__(self, folder: Path, url: str, machines: Any) -> None:
        self.lake = DeltaLake(folder / "lake")
        if self.lake.version("sequences") is None:
            words = text()
            by_document = windows(words).with_columns(document_hash=pl.col("document_id"))
            self.lake.replace("sequences", by_document, record={})
            made = of_layer(words, 0, NEURONS)
            for table, rows in (made | {"activations": with_quiet(made["exemplars"])}).items():
                self.lake.replace(table, rows, layer=0, record={})
        self.journal = folder / "journal.sqlite"
        door = OpenAICompatible(url, journal_path=self.journal, lake=self.lake, concurrency=AT_ONCE)
        project = Project(n_neurons=(NEURONS,), choices=CHOICES, code={})
        self.definitions = dg.Definitions(
            assets=[asset.define(project) for asset in (explanations, simulations, judgements, scores)],
            resources={
                "lake": self.lake, "language": door, "machines": machines,
                "subject": dg.ResourceDefinition.none_resource(),
            },
            executor=dg.in_process_executor,
        )  # fmt: skip

    def make(self, *hops: str) -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            run.materialize(self.definitions, instance, hops, layers=[0])

    def contents(self) -> dict[str, str]:
        return {hop: frame_hash(self.lake.read(hop), key=TABLES[hop].key) for hop in HOPS}


def answered(request: dict[str, Any]) -> str:
    messages = tuple((message["role"], message["content"]) for message in request["messages"])
    replies, _ = scripted().answer([Request(request["model"], messages, 0.0, 1, 0)], run_id="r")
    return replies[0].text or ""


@pytest.mark.filterwarnings("ignore")
def test_neurons_asked_about_on_machines_of_which_some_are_killed_have_the_rows_of_one_machine(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "NEURONS", 2)
    with Endpoint(answered, counts=True) as endpoint:
        # One URL for both, since it is in the identity of a request.
        alone = OneLayer(tmp_path / "alone", endpoint.url, ThisMachine())
        alone.make(*HOPS)
        usual = endpoint.asked.copy()
        endpoint.asked.clear()
        endpoint.most_at_once, endpoint.seconds = 0, 0.05

        spread = OneLayer(tmp_path / "spread", endpoint.url, RayMachines(device="cpu"))
        monkeypatch.setattr(explanations, "explained", killed_once)
        spread.make("explanations")
        assert Path(os.environ["KILLED_ONCE"] + "-while-asking").exists()
        assert endpoint.most_at_once <= AT_ONCE
        # What the killed process had kept was not asked for again.
        assert set(endpoint.asked.values()) == {1}

        third = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        killing = when_asked(endpoint, 40, lambda: cluster.remove_node(third, allow_graceful=False))
        spread.make("simulations")
        killing.join()
        # Of what was under way on the node that was killed, at most, the replies were lost.
        lost = endpoint.asked.total() - len(endpoint.asked)
        assert lost <= AT_ONCE

        words = ["ask", str(tmp_path / "spread"), endpoint.url, "judgements", "scores"]
        driver = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ray_driver.py")), *words],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        when_asked(endpoint, 20, driver.kill).join()
        assert driver.wait() == -signal.SIGKILL, driver.stderr and driver.stderr.read()
        # Its workers die with it, and what they had sent still arrives.
        while endpoint.under_way:
            threading.Event().wait(0.05)
        before = endpoint.asked.total()
        spread.make("judgements", "scores")
        assert before < endpoint.asked.total()
        assert set(endpoint.asked) == set(usual)
        assert endpoint.asked.total() - usual.total() - lost <= AT_ONCE
        assert endpoint.most_at_once <= 2 * AT_ONCE
    assert spread.contents() == alone.contents()
    assert spread.lake.read("judgements")["scorer"].unique().sort().to_list() == ["detection", "fuzzing", "intruder"]
    assert spread.lake.rows("language_calls") == len(usual)
    with Journal(spread.journal) as journal:
        assert journal.pending(1) == []


def when_asked(endpoint: Endpoint, more: int, do: Callable[[], object]) -> threading.Thread:
    """Do something once so many more requests have come."""
    enough = endpoint.asked.total() + more

    def wait() -> None:
        while endpoint.asked.total() < enough:
            threading.Event().wait(0.01)
        do()

    waiting = threading.Thread(target=wait)
    waiting.start()
    return waiting
