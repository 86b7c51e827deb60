"""Whole runs that are killed while a language model is asked, or while its answers are written down.

Each is killed once, at a random point between its first request and its last write, and then run again: no request is
sent twice whose reply was kept, and the tables end as those of a run that nobody disturbed. Three points on each push;
`NEURONLEDGER_TEST_KILLS=20` for more.
"""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import Runs, said

from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from resources.delta import DeltaLake
from resources.journal import Journal

KILLS = int(os.environ.get("NEURONLEDGER_TEST_KILLS", "3"))
LATEST = 1.5
"""Seconds after a request is asked at which a run is killed at the latest: the tables are written after the last one."""
MADE = ("explanations", "simulations", "judgements", "scores")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("killed"), in_memory=True)
    with runs.endpoint:
        made = runs.folder / "made"
        assert runs.run(made, words=["run", "--layers", "0"]) == 0, (made / "said.txt").read_text()
        yield runs
        runs.close()


def lake_of(home: Path) -> DeltaLake:
    return DeltaLake(home / "lake" / "subject")


def kept(home: Path) -> set[str]:
    """The requests whose replies are kept, in the lake or on the way there."""
    requests = lake_of(home).read("language_calls")["request"].to_list()
    journal = home / "dagster_home" / "subject" / "language_calls.sqlite"
    if journal.exists():
        with Journal(journal) as opened:
            requests += [received.request for received in opened.pending(1_000_000)]
    return {said(json.loads(request)) for request in requests}


def contents(home: Path) -> dict[str, str]:
    """The tables, whoever wrote them."""
    return {name: frame_hash(lake_of(home).read(name), key=TABLES[name].key) for name in MADE}


def test_a_run_killed_at_a_random_point_pays_for_no_kept_reply_again_and_ends_as_if_it_never_was(runs):
    undisturbed = runs.copied("undisturbed")
    assert runs.run(undisturbed) == 0, (undisturbed / "said.txt").read_text()
    total = len(runs.endpoint.requests)
    assert total > 20
    draw, killed = random.Random(20), 0
    for number in range(KILLS):
        home = runs.copied(f"killed-{number}")
        begun = len(runs.endpoint.requests)
        # Two of three among the requests, the third after the last of them or shortly before.
        late = number % 3 == 2
        at = draw.randint(total - 5, total) if late else draw.randint(1, total)
        killed += runs.run(home, kill_at=at, kill_after=draw.uniform(0, LATEST if late else 0.05)) == -9
        before = kept(home)
        again = len(runs.endpoint.requests)
        assert runs.run(home) == 0, (home / "said.txt").read_text()
        sent = Counter(said(request) for request in runs.endpoint.requests[again:])
        where = f"point {number}, request {at} of {total}"
        assert not before & set(sent), where
        assert set(sent.values()) <= {1}, where
        # What was under way when the run was killed is the most that is lost.
        assert again - begun + sent.total() <= total + 4, where
        assert contents(home) == contents(undisturbed), where
        shutil.rmtree(home)
    assert killed >= KILLS // 2
