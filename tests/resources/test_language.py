"""The door to language models, over real HTTP on loopback: nothing is paid for twice, and every fault has its name."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from asking import FolderLake, questions
from endpoint import Endpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LanguageModelError, SettingsError
from pipeline.ports import Request, Usage
from pipeline.provenance import TAG, content_hash
from pipeline.tables import MISSING, language_calls
from resources import answers
from resources import language as door
from resources.delta import DeltaLake
from resources.journal import Journal, Received
from resources.language import OpenAICompatible
from resources.prices import open_prices

FAULTS_FOLDER = Path(__file__).parents[1] / "faults"
CANARY = "sk-canary-0123456789abcdef"


@pytest.fixture(autouse=True)
def _quick_and_with_a_canary_for_a_key(monkeypatch):
    monkeypatch.setattr(door, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(door, "LONGEST_PAUSE", 0.05)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)


@pytest.fixture
def ask(tmp_path):
    """Make a door to an endpoint, with the journal and the lake of this test."""

    def make(url, **settings):
        return OpenAICompatible(
            url, journal_path=tmp_path / "journal.sqlite", lake=FolderLake(tmp_path / "lake"), **settings
        )

    return make


def calls(tmp_path):
    """The rows of `language_calls`."""
    return FolderLake(tmp_path / "lake").scan("language_calls").collect()


def journal_rows(tmp_path, table):
    journal = Journal(tmp_path / "journal.sqlite")
    with journal:
        return journal._claims.execute(f"SELECT * FROM {table}").fetchall()


def test_replies_come_in_the_order_of_their_requests(ask):
    def slower_for_earlier(request):
        number = int(request["messages"][-1]["content"].split()[-1])
        time.sleep(0.002 * (20 - number))
        return f"reply {number}"

    with Endpoint(slower_for_earlier) as endpoint:
        replies, usage = ask(endpoint.url).answer(questions(0, 20), run_id="r")

    assert [reply.text for reply in replies] == [f"reply {number}" for number in range(20)]
    assert usage == Usage(requests_sent=20, requests_kept=0, prompt_tokens=220, completion_tokens=140)


def test_a_server_that_is_late_with_many_at_once_is_asked_fewer_at_once(ask):
    under_way, counted = Counter(), threading.Lock()

    def late_with_many(request):
        with counted:
            under_way["now"] += 1
            many = under_way["now"] > 3
        time.sleep(1.1 if many else 0.01)
        with counted:
            under_way["now"] -= 1
        return "here"

    with Endpoint(late_with_many) as endpoint:
        replies, _ = ask(endpoint.url, timeout=1.0, concurrency=12).answer(questions(0, 16), run_id="r")

    assert [reply.missing_because for reply in replies] == [None] * 16


def test_no_requests_send_nothing_and_write_nothing(ask, tmp_path):
    assert ask("http://127.0.0.1:9/v1").answer([], run_id="r") == ([], Usage())
    assert not (tmp_path / "journal.sqlite").exists()


def test_a_request_is_sent_once_within_a_call_and_over_calls(ask):
    requests = [*questions(0, 5), *questions(0, 5)]

    with Endpoint() as endpoint:
        first, paid = ask(endpoint.url).answer(requests, run_id="r1")
        again, kept = ask(endpoint.url).answer(requests, run_id="r2")

    assert set(endpoint.asked.values()) == {1}
    assert first == again
    assert first[:5] == first[5:]
    assert (paid.requests_sent, paid.requests_kept) == (5, 5)
    assert (kept.requests_sent, kept.requests_kept, kept.prompt_tokens) == (0, 10, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"messages": (("system", "question 0"),)},
        {"temperature": 0.5},
        {"max_tokens": 8},
        {"seed": 2},
        {"json_reply": False},
    ],
)
def test_a_request_with_any_other_content_is_another_request(ask, change):
    (request,) = questions(0, 1)

    with Endpoint() as endpoint:
        language = ask(endpoint.url)
        changed = Request(**(vars(request) | change))
        language.answer([request, changed], run_id="r")

    assert language.request_id(request) != language.request_id(changed)
    assert endpoint.asked.total() == 2


def test_another_endpoint_is_asked_anew(ask):
    with Endpoint() as one, Endpoint() as other:
        ask(one.url).answer(questions(0, 1), run_id="r")
        ask(other.url).answer(questions(0, 1), run_id="r")

    assert one.asked.total() == other.asked.total() == 1


def test_a_kept_reply_needs_neither_the_endpoint_nor_a_key(ask, monkeypatch):
    with Endpoint() as endpoint:
        replies, _ = ask(endpoint.url).answer(questions(0, 3), run_id="r")
    monkeypatch.delenv("OPENAI_API_KEY")

    assert ask(endpoint.url).answer(questions(0, 3), run_id="r")[0] == replies


def test_a_row_holds_all_that_replay_needs(ask, tmp_path):
    with Endpoint(script=["500", None]) as endpoint:
        ask(endpoint.url).answer(questions(0, 1), run_id="the run")

    (row,) = calls(tmp_path).to_dicts()

    assert TAG + hashlib.sha256(row["request"].encode()).hexdigest() == row["request_id"]
    assert row["endpoint"] == endpoint.url
    assert (row["model"], row["model_served"]) == ("m", "scripted-model-0001")
    assert (row["reply"], row["finish_reason"], row["missing_because"]) == ("answer to question 0", "stop", None)
    assert (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]) == (11, 3, 7)
    assert (row["attempts"], row["cost_usd"], row["error"], row["run_id"]) == (2, None, None, "the run")
    assert journal_rows(tmp_path, "replies") == journal_rows(tmp_path, "claims") == []


def test_temperature_seed_and_json_mode_are_always_sent(ask):
    with Endpoint() as endpoint:
        ask(endpoint.url).answer(questions(0, 1), run_id="r")

    assert endpoint.requests == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "question 0"}],
            "temperature": 0.0,
            "max_tokens": 9,
            "seed": 1,
            "response_format": {"type": "json_object"},
        }
    ]


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        ("400 content filter", "filtered", "filtered prompt"),
        ("not json", "unparsable", "not JSON"),
        ("empty body", "unparsable", "not JSON: ''"),
        ("deep", "unparsable", "not JSON"),
        ("long", "unparsable", "longer than 8,388,608 bytes"),
        ("not utf-8", "unparsable", "not UTF-8"),
        ("empty choices", "unparsable", "no message"),
        ("null choices", "unparsable", "no message"),
        ("message is text", "unparsable", "no message"),
        ("a list", "unparsable", "no message"),
        ("refusal", "refused", "I cannot help"),
        ("content filter", "filtered", None),
        ("length", "truncated", None),
        ("null content", "unparsable", "NoneType, not text"),
        ("empty content", "unparsable", "empty"),
        ("int content", "unparsable", "int, not text"),
        ("list content", "unparsable", "list, not text"),
        ("surrogate", "unparsable", r"lone surrogates: half \\ud800 a pair"),
    ],
)
def test_an_answer_that_is_none_has_its_reason_and_is_not_asked_for_again(ask, tmp_path, fault, reason, words):
    with Endpoint(script=[fault]) as endpoint:
        (reply,), usage = ask(endpoint.url).answer(questions(0, 1), run_id="r")
        again = ask(endpoint.url).answer(questions(0, 1), run_id="r")[0]

    assert (reply.text, reply.missing_because) == (None, reason)
    assert usage.failures == {reason: 1}
    assert again == [reply]
    assert endpoint.asked.total() == 1
    (row,) = calls(tmp_path).to_dicts()
    assert row["missing_because"] == reason
    assert (row["error"] is None) == (words is None)
    assert words is None or pl.Series([row["error"]]).str.contains(words).item()


@pytest.mark.parametrize(
    ("fault", "reason", "times"),
    [
        ("429", "rate_limited", 5),
        ("429 for an hour", "rate_limited", 5),
        ("500", "server_error", 5),
        ("503", "server_error", 5),
        ("cut", "server_error", 5),
        ("hang up", "server_error", 5),
        ("html", "server_error", 5),
        ("error in 200", "server_error", 5),
        ("400", "server_error", 1),
        ("400 hostile", "server_error", 1),
        ("trickle", "timeout", 5),
    ],
)
def test_what_fails_in_passing_is_a_reason_now_and_asked_for_again_later(
    ask, tmp_path, caplog, *, fault, reason, times
):
    with Endpoint(script=[fault] * times) as endpoint:
        (reply,), usage = ask(endpoint.url, timeout=0.2).answer(questions(0, 1), run_id="r")

        assert (reply.text, reply.missing_because) == (None, reason)
        assert usage.failures == {reason: 1}
        assert endpoint.asked.total() == times
        assert "1 requests to" in caplog.text
        assert calls(tmp_path).is_empty()
        assert [row[2] for row in journal_rows(tmp_path, "failures")] == [reason] * times

        (later,), _ = ask(endpoint.url).answer(questions(0, 1), run_id="r")

    assert later.text == "answer to question 0"
    assert calls(tmp_path).get_column("attempts").to_list() == [times + 1]
    assert journal_rows(tmp_path, "failures") == []


@pytest.mark.parametrize("fault", ["429", "500", "503", "cut", "hang up", "trickle"])
def test_what_fails_once_is_repeated_within_the_call(ask, fault):
    with Endpoint(script=[fault]) as endpoint:
        (reply,), usage = ask(endpoint.url, timeout=0.3).answer(questions(0, 1), run_id="r")

    assert reply.text == "answer to question 0"
    assert (usage.requests_sent, endpoint.asked.total()) == (1, 2)


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        ("quota", "has no money left .* add to it"),
        ("401", "refused the key .* set the environment variable OPENAI_API_KEY"),
        ("403", "forbids `m` to this key"),
        ("404", "has no model `m`.* usually ends in /v1"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_an_error_with_a_remedy_and_loses_no_reply(ask, tmp_path, fault, remedy):
    with Endpoint(script=[None, None, None, fault]) as endpoint:
        with pytest.raises(LanguageModelError, match=f"{remedy}.*3 of 10 replies are kept") as caught:
            ask(endpoint.url, concurrency=1).answer(questions(0, 10), run_id="r")

        assert CANARY not in str(caught.value)
        assert len(calls(tmp_path)) == 3
        replies, usage = ask(endpoint.url).answer(questions(0, 10), run_id="r")

    assert all(reply.text for reply in replies)
    assert usage.requests_sent == 7


def test_requests_under_way_when_the_endpoint_becomes_unusable_are_kept(ask, tmp_path):
    with (
        Endpoint(script=["401"], seconds=0.1) as endpoint,
        pytest.raises(LanguageModelError, match="of 10 replies are kept") as caught,
    ):
        ask(endpoint.url, concurrency=4).answer(questions(0, 10), run_id="r")

    # How many were under way when the refusal came is the machine's affair.
    kept = len(calls(tmp_path))
    assert kept == endpoint.asked.total() - 1
    assert f"{kept} of 10 replies are kept" in str(caught.value)


def test_a_server_that_is_not_there_is_an_error_and_not_a_thousand_failed_requests(ask):
    with pytest.raises(LanguageModelError, match=r"cannot be reached .* check the base URL and that the server runs"):
        ask("http://127.0.0.1:9/v1").answer(questions(0, 1000), run_id="r")


def test_without_a_key_only_a_server_on_this_machine_is_asked(ask, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")

    with Endpoint() as endpoint:
        assert ask(endpoint.url).answer(questions(0, 1), run_id="r")[0][0].text

    assert endpoint.keys == {"none"}
    with pytest.raises(
        LanguageModelError, match=r"variable MY_KEY is not set, and https://model.invalid/v1 needs a key"
    ):
        ask("https://model.invalid/v1", api_key_variable="MY_KEY").answer(questions(0, 1), run_id="r")


def test_a_key_with_characters_that_no_key_has_is_refused_without_being_shown(ask, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\N{EM DASH}secret")

    with pytest.raises(LanguageModelError, match="OPENAI_API_KEY holds characters that no key has") as caught:
        ask("http://127.0.0.1:9/v1").answer(questions(0, 1), run_id="r")

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("fault", ["401", "quota", "500", "echo of the key"])
def test_the_key_is_sent_and_never_stored(ask, tmp_path, fault, caplog):
    with Endpoint(script=[fault] * 5) as endpoint:
        try:
            replies, _ = ask(endpoint.url).answer(questions(0, 1), run_id="r")
            told = str(replies)
        except LanguageModelError as error:
            told = str(error)

    assert endpoint.keys == {CANARY}
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    rows = str(calls(tmp_path).to_dicts())
    for text in (told, caplog.text, rows, stored.decode("latin-1")):
        assert CANARY not in text
        assert "canary" not in text


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://me:hunter2@example.org/v1", "for example.org must not carry a user, a password"),
        ("https://example.org/v1?key=hunter2", "must not carry"),
        ("ftp://example.org", "must be like `https://api.openai.com/v1`"),
        ("api.openai.com/v1", "must be like"),
    ],
)
def test_a_base_url_that_cannot_be_or_carries_secrets_is_refused(ask, url, words):
    with pytest.raises(SettingsError, match=words) as caught:
        ask(url)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"timeout": 0.0}])
def test_a_setting_that_must_be_positive_says_so(ask, wrong):
    with pytest.raises(SettingsError, match=r"\(=0.*must be"):
        ask("http://localhost/v1", **wrong)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_are_under_way_than_allowed(ask, concurrency):
    with Endpoint(seconds=0.02) as endpoint:
        ask(endpoint.url, concurrency=concurrency).answer(questions(0, 12), run_id="r")

    assert endpoint.most_at_once == concurrency


def test_an_endpoint_without_json_mode_is_asked_without_it_from_then_on(ask):
    with Endpoint(refuse={"response_format": "response_format is not supported"}) as endpoint:
        language = ask(endpoint.url, concurrency=1)
        replies, _ = language.answer(questions(0, 3), run_id="r")

    assert all(reply.text for reply in replies)
    assert ["response_format" in request for request in endpoint.requests] == [True, False, False, False]


def test_a_model_that_calls_the_token_limit_otherwise_is_asked_in_its_words(ask):
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."

    with Endpoint(refuse={"max_tokens": words}) as endpoint:
        replies, _ = ask(endpoint.url, concurrency=1).answer(questions(0, 2), run_id="r")

    assert all(reply.text for reply in replies)
    assert [request.get("max_completion_tokens") for request in endpoint.requests] == [None, 9, 9]


def test_one_pause_that_the_endpoint_asks_for_holds_for_all_requests(ask, monkeypatch):
    monkeypatch.setattr(door, "LONGEST_PAUSE", 0.4)
    seen = []

    with Endpoint(lambda request: seen.append(time.monotonic()) or "x", script=["429 for an hour"]) as endpoint:
        ask(endpoint.url, concurrency=1).answer(questions(0, 3), run_id="r")

    refused, *answered = seen
    assert min(answered) - refused > 0.35


def test_who_asks_for_text_with_lone_surrogates_gets_an_answer(ask):
    request = Request(model="m", messages=(("user", "half \ud800"),), temperature=0.0, max_tokens=9, seed=1)

    with Endpoint() as endpoint:
        assert ask(endpoint.url).answer([request], run_id="r")[0][0].text == "answer to half ?"


def test_threads_that_ask_the_same_at_once_pay_once(ask):
    got = []
    with Endpoint(seconds=0.05) as endpoint:
        threads = [
            threading.Thread(target=lambda: got.append(ask(endpoint.url).answer(questions(0, 8), run_id="r")))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert set(endpoint.asked.values()) == {1}
    assert got[0][0] == got[1][0] == got[2][0]
    assert sum(usage.requests_sent for _, usage in got) == 8


def start(endpoint, tmp_path, first, last):
    arguments = [sys.executable, str(FAULTS_FOLDER / "asking.py"), endpoint.url, str(tmp_path), str(first), str(last)]
    return subprocess.Popen(arguments, env=os.environ | {"OPENAI_API_KEY": CANARY})


def test_processes_that_ask_the_same_at_once_pay_once(tmp_path):
    with Endpoint(seconds=0.05) as endpoint:
        processes = [start(endpoint, tmp_path, 0, 60), start(endpoint, tmp_path, 20, 80)]
        assert [process.wait(60) for process in processes] == [0, 0]

    assert set(endpoint.asked.values()) == {1}
    assert endpoint.asked.total() == 80
    assert calls(tmp_path).get_column("request_id").n_unique() == len(calls(tmp_path)) == 80


def test_a_killed_process_loses_only_what_was_under_way(ask, tmp_path):
    with Endpoint(seconds=0.03) as endpoint:
        process = start(endpoint, tmp_path, 0, 200)
        while endpoint.asked.total() < 40:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        asked_before = endpoint.asked.total()

        replies, usage = ask(endpoint.url).answer(questions(0, 200), run_id="after")

    assert [reply.text for reply in replies] == [f"answer to question {number}" for number in range(200)]
    twice = [times for times in endpoint.asked.values() if times > 1]
    assert len(twice) <= 4
    assert set(twice) <= {2}
    assert usage.requests_sent == 200 - asked_before + len(twice)
    assert Counter(calls(tmp_path).get_column("run_id"))["after"] == usage.requests_sent
    assert journal_rows(tmp_path, "replies") == journal_rows(tmp_path, "claims") == []


def test_a_claim_of_a_dead_process_is_taken_over(ask, tmp_path):
    with Endpoint() as endpoint:
        language = ask(endpoint.url)
        with Journal(tmp_path / "journal.sqlite") as journal:
            dead = (language.request_id(questions(0, 1)[0]), "somebody", os.getpid(), "another start time")
            journal._claims.execute("INSERT INTO claims VALUES (?, ?, ?, ?)", dead)
        (reply,), _ = language.answer(questions(0, 1), run_id="r")

    assert reply.text == "answer to question 0"


def test_a_reply_that_a_dead_run_left_in_the_journal_reaches_the_lake(ask, tmp_path):
    with Endpoint() as endpoint:
        ask(endpoint.url).answer(questions(0, 1), run_id="r")
        with Journal(tmp_path / "journal.sqlite") as journal:
            left = Received("sha256:left", "e", "m", "{}", 200, b"{}", 1.0, 1, "2026-01-01T00:00:00+00:00", "dead run")
            journal.keep(left)
        _, usage = ask(endpoint.url).answer(questions(0, 1), run_id="r")

    assert usage.requests_sent == 0
    assert "dead run" in calls(tmp_path).get_column("run_id")


def test_a_reply_that_moved_to_the_lake_while_we_looked_is_not_paid_for_again(ask, tmp_path):
    """Another process answers and moves its reply after our look into the lake and before our claim."""
    with Endpoint() as endpoint:
        language = ask(endpoint.url)
        look = language._look

        async def look_then_be_overtaken(call, desk):
            await look(call, desk)
            language._look = look
            other = ask(endpoint.url)
            await asyncio.to_thread(other.answer, questions(0, 3), run_id="the other")

        language._look = look_then_be_overtaken
        replies, usage = language.answer(questions(0, 3), run_id="r")

    assert usage.requests_sent == 0
    assert all(reply.text for reply in replies)
    assert endpoint.asked.total() == 3


def test_replies_move_to_the_lake_in_commits_of_bounded_size(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(door, "ROWS_AT_ONCE", 4)
    with Endpoint() as endpoint:
        ask(endpoint.url).answer(questions(0, 10), run_id="r")

    assert FolderLake(tmp_path / "lake").version("language_calls") == 2
    assert len(calls(tmp_path)) == 10


def test_a_journal_that_is_damaged_says_what_to_do(ask, tmp_path):
    (tmp_path / "journal.sqlite").write_bytes(b"not a database" * 100)

    with pytest.raises(LanguageModelError, match=r"journal `.*journal.sqlite` cannot be used .* move it away"):
        ask("http://127.0.0.1:9/v1").answer(questions(0, 1), run_id="r")


def test_every_request_ends_in_a_reply_whatever_the_endpoint_does(ask, tmp_path):
    rates = {"429": 0.1, "500": 0.1, "cut": 0.1, "html": 0.1, "refusal": 0.1, "length": 0.1, "surrogate": 0.1}

    with Endpoint(rates=rates, seed=3) as endpoint:
        replies, usage = ask(endpoint.url).answer(questions(0, 200), run_id="r")

    assert all((reply.text is None) == (reply.missing_because in MISSING) for reply in replies)
    assert sum(usage.failures.values()) + sum(reply.text is not None for reply in replies) == 200
    assert {"unparsable", "refused", "truncated"} <= set(usage.failures)
    assert max(endpoint.asked.values()) <= 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "refusal", "finish_reason", "usage", "model", "x"]), inner
        )
    ),
    max_leaves=12,
)
BODIES = st.binary(max_size=200) | st.builds(
    lambda value, whole: (
        __import__("json")
        .dumps(value if whole else {"choices": [{"message": value}], "usage": value, "model": value})
        .encode()
    ),
    JSON,
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(body=BODIES, status=st.sampled_from([200, 400]))
def test_any_body_becomes_one_row_that_the_table_takes(body, status):
    received = Received(content_hash(1), "e", "m", "{}", status, body, 1.0, 1, "2026-01-01T00:00:00+00:00", "r")

    rows = answers.rows([received], open_prices())

    (row,) = language_calls.conform(rows).to_dicts()
    assert row["missing_because"] in MISSING or row["reply"].strip()


def test_a_check_says_what_the_endpoint_can_do(ask, tmp_path):
    with Endpoint(lambda request: '{"ok": true}') as endpoint:
        found = ask(endpoint.url).check("m")

    assert found.pop("seconds") >= 0
    assert found == {
        "endpoint": endpoint.url,
        "model": "m",
        "reachable": True,
        "answers": True,
        "json_mode": True,
        "model_served": "scripted-model-0001",
        "error": None,
    }
    assert calls(tmp_path).is_empty()


@pytest.mark.parametrize(
    ("fault", "reachable", "words"), [("401", True, "Incorrect API key"), ("html", True, "HTML"), ("cut", True, "")]
)
def test_a_check_that_fails_says_why_and_shows_no_key(ask, fault, reachable, words):
    with Endpoint(script=[fault]) as endpoint:
        found = ask(endpoint.url).check("m")

    assert (found["reachable"], found["answers"]) == (reachable, False)
    assert words in found["error"]
    assert CANARY not in str(found)


def test_a_check_of_a_server_that_is_not_there_says_so(ask):
    found = ask("http://127.0.0.1:9/v1").check("m")

    assert not found["reachable"]
    assert "Cannot connect to host 127.0.0.1:9" in found["error"]


def test_with_the_real_lake_nothing_is_paid_for_twice(tmp_path):
    lake = DeltaLake(str(tmp_path / "lake"))
    with Endpoint(script=["refusal", "surrogate", "length"]) as endpoint:
        language = OpenAICompatible(endpoint.url, journal_path=tmp_path / "journal.sqlite", lake=lake, concurrency=1)
        first, _ = language.answer(questions(0, 6), run_id="r1")
        again, usage = language.answer(questions(0, 8), run_id="r2")

    assert [reply.missing_because for reply in first] == ["refused", "unparsable", "truncated", None, None, None]
    assert again[:6] == first
    assert usage.requests_sent == 2
    assert endpoint.asked.total() == 8
    assert len(lake.scan("language_calls").collect()) == 8
