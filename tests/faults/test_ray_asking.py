"""Neurons explained and simulated on a real cluster, of which a worker and then a node is killed: the tables of one machine."""

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from endpoint import Endpoint

from assets import explanations, pieces, run, scores, simulations
from assets.project import Choices, Project
from benchmarks.asking import HOPS, of_layer, text, windows
from pipeline.ports import Answer, Request, Usage
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from pipeline.testing import scripted
from resources.delta import DeltaLake
from resources.journal import Journal
from resources.language import OpenAICompatible
from resources.machines import RayMachines, ThisMachine

NEURONS, AT_ONCE = 12, 4
CHOICES = Choices(windows=2_000, length=64, seed=0, explainer="scripted", simulator="scripted")
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


class OneLayer:
    """Layer 0 of a made-up subject, asked about at an endpoint of its own."""

    def __init__(self, folder: Path, url: str, machines: Any) -> None:
        self.lake = DeltaLake(folder / "lake")
        words = text()
        self.lake.replace("sequences", windows(words), record={})
        for table, rows in of_layer(words, 0, NEURONS).items():
            self.lake.replace(table, rows, layer=0, record={})
        self.journal = folder / "journal.sqlite"
        door = OpenAICompatible(url, journal_path=self.journal, lake=self.lake, concurrency=AT_ONCE)
        project = Project(n_neurons=(NEURONS,), choices=CHOICES, code={})
        self.definitions = dg.Definitions(
            assets=[asset.define(project) for asset in (explanations, simulations, scores)],
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
        begun = endpoint.asked.total()

        def kill_when_it_works() -> None:
            while endpoint.asked.total() < begun + 40:
                threading.Event().wait(0.01)
            cluster.remove_node(third, allow_graceful=False)

        killing = threading.Thread(target=kill_when_it_works)
        killing.start()
        spread.make("simulations", "scores")
        killing.join()
        assert set(endpoint.asked) == set(usual)
        # Of what was under way on the node that was killed, at most, the replies were lost.
        assert endpoint.asked.total() - usual.total() <= AT_ONCE
        assert endpoint.most_at_once <= 2 * AT_ONCE
    assert spread.contents() == alone.contents()
    assert spread.lake.rows("language_calls") == len(usual)
    with Journal(spread.journal) as journal:
        assert journal.pending(1) == []
