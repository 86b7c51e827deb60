"""Requests in provider batches, over real HTTP: nothing is lost, nothing is paid twice, whatever goes wrong."""

import json
import threading
import urllib.request
from collections import Counter

import polars as pl
import pytest
from asking import FolderLake
from batching import questions
from click.testing import CliRunner

from explorer import fake_batches
from explorer.cli import main
from explorer.fake_endpoint import FakeEndpoint
from pipeline.errors import LanguageModelError
from resources import batch_files, provider_batches
from resources import language as door
from resources.batch_records import BatchRecords
from resources.budget import Budget
from resources.journal import Journal
from resources.language import OpenAICompatible
from resources.prices import Price, open_prices

PRICES = '[[price]]\nmodel = "scripted"\ninput = 10\noutput = 30\nbatch = 0.5\n'


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(door, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(provider_batches, "FIRST_LOOK", 0.01)


@pytest.fixture
def door_to(tmp_path):
    """Make a door that asks in batches, with the journal and the lake of this test."""
    (tmp_path / "prices.toml").write_text(PRICES)

    def make(url, *, batch=True, **settings):
        return OpenAICompatible(
            f"{url}/v1", journal_path=tmp_path / "journal.sqlite", lake=FolderLake(tmp_path / "lake"), batch=batch,
            prices=open_prices(tmp_path / "prices.toml"), **settings,
        )  # fmt: skip

    return make


def calls(tmp_path):
    return FolderLake(tmp_path / "lake").scan("language_calls").collect()


def reasons(replies):
    return Counter(reply.missing_because for reply in replies)


def outstanding(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        return BatchRecords(journal).waiting()


def test_a_batch_answers_in_the_order_of_the_requests_at_the_price_of_batches(served, door_to, tmp_path):
    asked, endpoint = questions(0, 20), FakeEndpoint()
    with served(endpoint.app()) as url:
        alone, paid = door_to(url, batch=False).answer(asked[:10], run_id="alone")
        replies, usage = door_to(url).answer([*asked, *asked], run_id="r")
    assert [reply.text for reply in replies[:10]] == [reply.text for reply in alone]
    assert replies[:20] == replies[20:]
    assert reasons(replies) == {None: 40}
    assert (usage.requests_sent, usage.requests_kept) == (10, 30)
    # The ten that were kept are in no batch, and no request twice.
    assert endpoint.batches.counts()["in_batches"] == 10
    assert set(endpoint.asked.values()) == {1}
    rows = calls(tmp_path)
    assert rows.get_column("batch_id").value_counts().sort("batch_id").rows() == [(None, 10), ("batch_0001", 10)]
    for row in rows.iter_rows(named=True):
        full = (10 * row["prompt_tokens"] + 30 * row["completion_tokens"]) / 1e6
        assert row["cost_usd"] == pytest.approx(full / 2 if row["batch_id"] else full)
    assert usage.cost_usd == pytest.approx(rows.drop_nulls("batch_id").get_column("cost_usd").sum())
    assert paid.cost_usd == pytest.approx(rows.filter(pl.col("batch_id").is_null()).get_column("cost_usd").sum())
    assert outstanding(tmp_path) == []


def test_a_batch_is_written_down_before_it_is_waited_for_and_progress_names_it(served, door_to, tmp_path):
    heard = []

    def progress(step, done, total, detail=""):
        heard.append((step, done, total, detail, [record.batch_id for record, _ in outstanding(tmp_path)]))

    with served(FakeEndpoint().app()) as url:
        door_to(url, progress=progress).answer(questions(0, 4), run_id="r")
    assert heard == [
        ("batch", 2, 4, "waiting for batch_0001", ["batch_0001"]),
        ("batch", 4, 4, "waiting for batch_0001", ["batch_0001"]),
    ]


@pytest.mark.parametrize(
    ("fault", "missing"),
    [
        ("batch_failed", ("server_error", 40)),
        ("batch_expired", ("timeout", 20)),
        ("batch_cut_off", ("server_error", 5)),
        ("rate_limited", ("rate_limited", 40)),
        ("server_error", ("server_error", 40)),
        ("line_missing", ("server_error", 40)),
    ],
)
def test_what_a_batch_does_not_answer_has_its_reason_and_is_asked_again(served, door_to, tmp_path, fault, missing):
    (reason, least), asked, endpoint = missing, questions(0, 40), FakeEndpoint({fault: 1.0})
    with served(endpoint.app()) as url:
        replies, usage = door_to(url).answer(asked, run_id="r")
        assert set(reasons(replies)) <= {None, reason}
        assert reasons(replies)[reason] >= least
        assert usage.failures == {reason: reasons(replies)[reason]}
        answered = [reply for reply in replies if reply.missing_because is None]
        assert len(calls(tmp_path)) == len(answered)
        endpoint.rates = endpoint.batches._rates = {}
        again, usage = door_to(url).answer(asked, run_id="s")
        assert reasons(again) == {None: 40}
        assert usage.requests_sent == 40 - len(answered)
    assert [reply for reply in again if reply in answered] == answered


@pytest.mark.parametrize("fault", ["filtered", "refused", "truncated", "empty", "malformed", "wrong_length"])
def test_an_answer_that_is_none_is_kept_with_its_reason_as_if_it_was_asked_for_alone(
    served, door_to, tmp_path, fault, tmp_path_factory
):
    other = tmp_path_factory.mktemp("other")
    with served(FakeEndpoint({fault: 1.0}).app()) as url:
        replies, _ = door_to(url).answer(questions(0, 3), run_id="r")
        alone, _ = OpenAICompatible(f"{url}/v1", journal_path=other / "journal", lake=FolderLake(other)).answer(
            questions(0, 3), run_id="r"
        )
        again, usage = door_to(url).answer(questions(0, 3), run_id="s")
    assert [(reply.text, reply.missing_because) for reply in replies] == [
        (reply.text, reply.missing_because) for reply in alone
    ]
    assert (again, usage.requests_sent, len(calls(tmp_path))) == (replies, 0, 3)


def test_of_two_lines_for_one_request_one_counts_and_it_is_kept_once(served, door_to, tmp_path):
    with served(FakeEndpoint({"line_doubled": 1.0}).app()) as url:
        replies, usage = door_to(url).answer(questions(0, 30), run_id="r")
    assert (reasons(replies), usage.requests_sent, len(calls(tmp_path))) == ({None: 30}, 30, 30)


def test_a_batch_whose_making_was_not_heard_is_found_and_not_made_again(served, door_to):
    endpoint = FakeEndpoint({"batch_unheard": 1.0})
    with served(endpoint.app()) as url:
        replies, _ = door_to(url).answer(questions(0, 5), run_id="r")
    assert reasons(replies) == {None: 5}
    assert endpoint.batches.counts()["batches"] == 1
    assert endpoint.asked.total() == 5


@pytest.mark.parametrize(("lines", "size"), [(2, 10**9), (50_000, 4_500)], ids=["by requests", "by bytes"])
def test_what_is_too_much_for_one_file_goes_in_several(served, door_to, monkeypatch, lines, size):
    monkeypatch.setattr(batch_files, "MOST_REQUESTS", lines)
    monkeypatch.setattr(batch_files, "MOST_BYTES", size)
    monkeypatch.setattr(fake_batches, "MOST_REQUESTS", lines)
    endpoint = FakeEndpoint()
    with served(endpoint.app()) as url:
        replies, _ = door_to(url).answer(questions(0, 20), run_id="r")
    assert reasons(replies) == {None: 20}
    assert endpoint.batches.counts()["batches"] == 10
    assert (
        max(
            len(content) for content in (endpoint.batches.files[one.input] for one in endpoint.batches.batches.values())
        )
        <= size
    )
    assert set(endpoint.asked.values()) == {1}


def test_a_model_that_is_not_there_stops_the_call_with_the_provider_s_words(served, door_to):
    (request,) = questions(0, 1)
    with served(FakeEndpoint().app()) as url, pytest.raises(LanguageModelError, match=r"the models are \['other'\]"):
        door_to(url).answer([type(request)(**(vars(request) | {"model": "other"}))], run_id="r")


def test_an_endpoint_without_batches_is_told_from_one_with_and_the_requests_are_free_again(served, door_to, tmp_path):
    app = FakeEndpoint().app()
    app.router.routes[:] = [route for route in app.router.routes if route.path.startswith(("/v1/chat", "/counts"))]
    with served(app) as url:
        with pytest.raises(LanguageModelError, match=r"takes no batches .*ask without them, by `--batch no`"):
            door_to(url).answer(questions(0, 2), run_id="r")
        assert outstanding(tmp_path) == []
        replies, _ = door_to(url, batch=False).answer(questions(0, 2), run_id="s")
    assert reasons(replies) == {None: 2}


def test_a_budget_counts_what_a_batch_may_cost_before_it_is_handed_over(served, door_to):
    asked, endpoint = questions(0, 12), FakeEndpoint()
    price = Price(5, 5, 15)
    with served(endpoint.app()) as url:
        probe = Budget(usd=1e9)
        for place, request in enumerate(asked):
            probe.admit(str(place), request, price)
        most = probe._held_usd / len(asked)
        budget = Budget(usd=2.5 * most)
        replies, usage = door_to(url, budget=budget).answer(asked, run_id="r")
        assert budget.is_used_up
        assert 0 < usage.cost_usd == pytest.approx(budget.spent_usd)
        assert budget.spent_usd <= 2.5 * most
        first = next(iter(endpoint.batches.batches.values()))
        # What was handed over cost less than it might have, so there was room for more; never for more than that.
        assert first.total == 2
        found = reasons(replies)
        assert found["budget"] == 12 - found[None] > 0
        again, _ = door_to(url).answer(asked, run_id="s")
    assert reasons(again) == {None: 12}
    assert set(endpoint.asked.values()) == {1}


def test_an_unknown_price_of_batches_is_no_price(tmp_path):
    (tmp_path / "prices.toml").write_text(PRICES.replace("batch = 0.5\n", ""))
    prices = open_prices(tmp_path / "prices.toml")
    assert prices.of("scripted", endpoint="anywhere") == Price(10, 10, 30)
    assert prices.of("scripted", endpoint="anywhere", batch=True) is None
    half = open_prices().of("gpt-4o-mini", endpoint="https://api.openai.com/v1", batch=True)
    assert half == Price(0.075, 0.075, 0.3)


@pytest.mark.parametrize("batch", [True, False], ids=["in a batch", "alone"])
def test_two_calls_at_once_do_not_send_a_request_twice(served, door_to, batch):
    endpoint, found = FakeEndpoint(seconds=0.3), {}
    with served(endpoint.app()) as url:

        def ask(name, batch):
            found[name] = door_to(url, batch=batch).answer(questions(0, 6), run_id=name)

        threads = [threading.Thread(target=ask, args=arguments) for arguments in (("one", True), ("two", batch))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [reply.text for reply in found["one"][0]] == [reply.text for reply in found["two"][0]]
    assert reasons(found["one"][0]) == {None: 6}
    assert set(endpoint.asked.values()) == {1}


def test_a_request_that_is_in_a_batch_is_waited_for_by_a_run_that_asks_one_by_one(served, door_to, tmp_path):
    endpoint = FakeEndpoint(seconds=0.2)
    with served(endpoint.app()) as url:
        language = door_to(url)

        class Stopped(Exception):  # noqa: N818
            pass

        def stop(*_):
            raise Stopped

        language.progress = stop
        with pytest.raises(Stopped):
            language.answer(questions(0, 3), run_id="r")
        assert [count for _, count in outstanding(tmp_path)] == [3]
        replies, usage = door_to(url, batch=False).answer(questions(0, 4), run_id="s")
    assert reasons(replies) == {None: 4}
    assert usage.requests_sent == 4
    assert set(endpoint.asked.values()) == {1}
    assert calls(tmp_path).get_column("batch_id").null_count() == 1


def test_a_batch_that_somebody_cancelled_lets_its_requests_go(served, door_to, tmp_path):
    endpoint = FakeEndpoint(seconds=60)
    with served(endpoint.app()) as url:

        def cancel(step, done, total, detail):
            urllib.request.urlopen(
                urllib.request.Request(f"{url}/v1/batches/{detail.split()[-1]}/cancel", method="POST")
            ).close()

        replies, _ = door_to(url, progress=cancel).answer(questions(0, 3), run_id="r")
    assert reasons(replies) == {"not_requested": 3}
    assert outstanding(tmp_path) == []


def test_a_journal_of_before_there_were_batches_is_taken_over_with_its_replies(tmp_path):
    import sqlite3

    with Journal(tmp_path / "journal.sqlite"):
        pass
    rows = sqlite3.connect(tmp_path / "journal.sqlite")
    rows.executescript(
        "DROP TABLE batches; DROP TABLE batch_requests; ALTER TABLE replies DROP COLUMN batch_id;"
        "INSERT INTO replies VALUES ('sha256:a', 'e', 'm', '{}', 200, x'7b7d', 1.0, 1, '2026-01-01', 'r');"
        "PRAGMA user_version = 1;"
    )
    rows.close()
    with Journal(tmp_path / "journal.sqlite") as journal:
        (received,) = journal.pending(5)
        assert (received.request_id, received.batch_id) == ("sha256:a", None)
        assert journal.claim("sha256:b")


@pytest.mark.parametrize(
    ("content", "found", "unreadable"),
    [
        (b"", {}, 0),
        (b"\n\n", {}, 0),
        (b'{"custom_id": "a", "resp', {}, 1),
        (b"[" * 100_000, {}, 1),
        (b"\xff\xfe", {}, 1),
        (b'{"custom_id": 3, "response": null}', {}, 1),
        (b'{"custom_id": "a"}', {"a": None}, 0),
        (b'{"custom_id": "a", "response": {"status_code": "200", "body": {}}, "error": 5}', {"a": None}, 0),
        (b'{"custom_id": "a", "response": {"status_code": 200, "body": [1]}}', {"a": 200}, 0),
        (b'{"custom_id": "a", "response": {"status_code": 500, "body": {"error": ["x"]}}}', {"a": 500}, 0),
    ],
)
def test_a_file_of_answers_may_hold_anything(content, found, unreadable):
    lines, bad = batch_files.read(content)
    assert ({name: line.status for name, line in lines.items()}, bad) == (found, unreadable)


def test_of_a_failure_and_an_answer_to_one_request_the_answer_counts():
    failed, answered = (
        json.dumps({"custom_id": "a", "response": {"status_code": status, "body": {}}}).encode()
        for status in (500, 200)
    )
    for content in (failed + b"\n" + answered, answered + b"\n" + failed):
        assert batch_files.read(content)[0]["a"].status == 200


def test_a_file_with_a_line_that_is_refused_is_handed_over_again_without_it(served, door_to, monkeypatch):
    endpoint = FakeEndpoint()
    read = fake_batches._read

    def refusing(content, path):
        lines = content.splitlines()
        for place, line in enumerate(lines, start=1):
            if b"w3" in line:
                return [], [{"code": "invalid", "message": "too long", "line": place}]
        return read(content, path)

    monkeypatch.setattr(fake_batches, "_read", refusing)
    with served(endpoint.app()) as url:
        replies, usage = door_to(url).answer(questions(0, 6), run_id="r")
    assert [reply.missing_because for reply in replies] == [None, None, None, "server_error", None, None]
    assert usage.requests_sent == 6


def test_a_run_in_batches_ends_as_one_that_asks_one_by_one_and_plan_and_cost_say_its_price(
    copied, served, tmp_path_factory
):
    other = copied.copy(tmp_path_factory.mktemp("other"))
    for folder in (copied, other):
        (folder.home / "prices.toml").write_text(PRICES)
    with served(FakeEndpoint().app()) as url:
        asking = (
            "--explainer",
            "scripted",
            "--base-url",
            f"{url}/v1",
            "--prices",
            "prices.toml",
            "--select",
            "random:2",
        )
        plans = {
            way: json.loads(copied.type("plan", "--json", "--layers", "0", "--batch", way, *asking).stdout)["total"]
            for way in ("no", "yes")
        }
        assert plans["yes"]["cost_usd"] == pytest.approx(plans["no"]["cost_usd"] / 2)
        assert plans["yes"]["seconds"] is None
        words = copied.type("plan", "--layers", "0", "--batch", "yes", *asking).stdout
        assert "The cost is that of batches." in words
        shown = copied.type("run", "--layers", "0", "--batch", "yes", *asking)
        assert shown.exit_code == 0
        assert "waiting for batch_0001, " in shown.stderr
        assert other.type("run", "--layers", "0", *asking).exit_code == 0
        states = copied.states(*asking)
    assert copied.contents() == other.contents()
    assert {status for (table, layer), (status, _) in states.items() if layer == 0} == {"fresh"}
    costs = [json.loads(folder.type("cost", "--json").stdout)["total"] for folder in (copied, other)]
    assert costs[0]["in_batches"] == costs[0]["requests"] == costs[1]["requests"]
    assert costs[1]["in_batches"] == 0
    assert costs[0]["cost_usd"] == pytest.approx(costs[1]["cost_usd"] / 2)
    assert "came in batches" in copied.type("cost").stdout


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_seconds_that_are_no_time_are_refused(seconds):
    result = CliRunner().invoke(main, ["fake-endpoint", "--seconds", seconds])
    assert result.exit_code == 2
    assert "--seconds" in result.stderr
