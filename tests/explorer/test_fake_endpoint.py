"""The fake endpoint over real HTTP: it answers by its script, misbehaves as often as it is told, and nothing is lost."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter

import pytest
from asking import FolderLake
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from explorer.cli import main
from explorer.fake_endpoint import FakeEndpoint
from pipeline.errors import SettingsError
from pipeline.methods import METHODS, Evidence
from pipeline.misbehaviour import KINDS, drawn
from pipeline.token_activation_pairs import parse
from resources import language as door
from resources.language import OpenAICompatible


def asked(n):
    """A different question about each of n neurons, which any script can answer."""
    ask, silent = METHODS["token-space"], [(" the", 1), (" of", 1), (" a", 1)]
    return [ask.request(Evidence(tokens=[(f" w{k}", 10), *silent]), model="scripted", seed=0) for k in range(n)]


def door_to(url, tmp_path, **settings):
    return OpenAICompatible(
        f"{url}/v1", journal_path=tmp_path / "journal.sqlite", lake=FolderLake(tmp_path / "lake"), **settings
    )


def counts(url):
    with urllib.request.urlopen(f"{url}/counts") as reply:
        return json.load(reply)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(door, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(door, "LONGEST_PAUSE", 0.02)


def test_of_a_thousand_requests_to_an_endpoint_that_fails_none_is_lost_none_is_paid_twice_and_each_has_its_reason(
    tmp_path, served
):
    requests = asked(1_000)
    with served(FakeEndpoint({"rate_limited": 0.1, "server_error": 0.02, "malformed": 0.05}, seed=3).app()) as url:
        language = door_to(url, tmp_path, concurrency=32)
        replies, usage = language.answer(requests, run_id="r")
        found = counts(url)
        again, used = language.answer(requests, run_id="s")
        assert counts(url) == found
    assert len(replies) == 1_000
    # What was answered, well or badly, was answered once; what was refused in passing was sent until it was answered.
    assert found["different"] == 1_000
    assert found["answered"] + found["malformed"] == 1_000
    assert found["requests"] == 1_000 + found["rate_limited"] + found["server_error"]
    read = [parse(reply) for reply in replies]
    reasons = Counter(reason for _, reason in read)
    assert reasons == {None: found["answered"], "unparsable": found["malformed"]}
    assert 20 < found["malformed"] < 90
    assert found["rate_limited"] > 60
    assert {text for text, reason in read if reason is None} == {f'"w{k}"' for k in range(1_000)} - {
        f'"w{k}"' for k, (_, reason) in enumerate(read) if reason
    }
    assert (usage.requests_sent, used.requests_sent, used.requests_kept) == (1_000, 0, 1_000)
    assert list(again) == list(replies)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("rate_limited", "rate_limited"),
        ("server_error", "server_error"),
        ("cut_off", "server_error"),
        ("refused", "refused"),
        ("truncated", "truncated"),
        ("empty", "unparsable"),
        ("malformed", "unparsable"),
    ],
)
def test_every_kind_of_fault_ends_with_its_reason(tmp_path, kind, reason, served):
    with served(FakeEndpoint({kind: 1.0}).app()) as url:
        ((reply,), _) = door_to(url, tmp_path).answer(asked(1), run_id="r")
        assert counts(url)[kind] >= 1
    assert parse(reply) == (None, reason)


def test_an_answer_takes_as_long_as_it_is_told(tmp_path, served):
    with served(FakeEndpoint(seconds=0.3).app()) as url:
        began = time.monotonic()
        door_to(url, tmp_path).answer(asked(1), run_id="r")
    assert time.monotonic() - began >= 0.3


def test_it_has_one_model_and_says_what_is_wrong_with_a_request(tmp_path, served):
    with served(FakeEndpoint().app()) as url:
        with urllib.request.urlopen(f"{url}/v1/models") as reply:
            assert [model["id"] for model in json.load(reply)["data"]] == ["scripted"]
        for body, status in (
            (b"{", 400),
            (b'{"model": "scripted", "messages": []}', 400),
            (b'{"model": "gpt", "messages": [{"role": "user", "content": "x"}]}', 404),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", data=body))
            assert refused.value.code == status
            refused.value.close()


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"sleepy": 0.1}, "there is no fault 'sleepy'; known are rate_limited"),
        ({"cut_off": 1.5}, "--cut-off .=1.5. must be a share"),
        ({"cut_off": -0.1}, "must be a share"),
        ({"cut_off": 0.6, "refused": 0.6}, "add up to 1.2"),
    ],
)
def test_shares_that_are_none_are_refused(rates, said):
    with pytest.raises(SettingsError, match=said):
        FakeEndpoint(rates)


@given(st.binary(max_size=20), st.integers(0, 5), st.integers(0, 9))
def test_what_goes_wrong_depends_on_seed_content_and_how_often_it_came_alone(content, times, seed):
    rates = dict.fromkeys(KINDS, 0.1)
    assert drawn(rates, content, times=times, seed=seed) == drawn(rates, content, times=times, seed=seed)
    assert drawn({}, content, times=times, seed=seed) is None
    assert drawn({"refused": 1.0}, content, times=times, seed=seed) == "refused"


def test_faults_come_about_as_often_as_they_are_told_to():
    found = Counter(drawn({"empty": 0.2, "refused": 0.1}, b"%d" % n, times=0, seed=0) for n in range(5_000))
    assert found["empty"] == pytest.approx(1_000, rel=0.1)
    assert found["refused"] == pytest.approx(500, rel=0.15)


def test_a_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["fake-endpoint", "--port", str(port)])
    assert result.exit_code == 2
    assert f"port {port} of 127.0.0.1 cannot be used (Address already in use); give another --port" in result.stderr


def test_the_command_serves_on_this_machine_alone(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from explorer.cli import main; main()",
        "fake-endpoint",
        "--port",
        str(port),
        "--refused",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert f"http://127.0.0.1:{port}/v1 answers as the model `scripted`" in server.stderr.readline()
            for _ in range(1_000):
                try:
                    found = counts(f"http://127.0.0.1:{port}")
                    break
                except urllib.error.URLError:
                    time.sleep(0.02)
            ((reply,), _) = door_to(f"http://127.0.0.1:{port}", tmp_path).answer(asked(1), run_id="r")
        finally:
            server.terminate()
    assert found == {"requests": 0, "different": 0}
    assert reply.missing_because == "refused"


def posted(url, **body):
    """What the endpoint answers to this body, as JSON."""
    request = urllib.request.Request(url, data=json.dumps(body).encode())
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def test_a_slow_answer_comes_whole_or_runs_out_of_time(tmp_path, served):
    with served(FakeEndpoint({"slow": 1.0}).app()) as url:
        ((patient,), _) = door_to(url, tmp_path).answer(asked(1), run_id="r")
        ((hasty,), _) = door_to(url, tmp_path / "other", timeout=0.2).answer(asked(1), run_id="r")
    assert parse(patient) == ('"w0"', None)
    assert hasty.missing_because == "timeout"


def test_every_token_of_a_chat_answer_comes_with_what_might_have_stood_there(served):
    (request,) = asked(1)
    messages = [{"role": role, "content": text} for role, text in request.messages]
    with served(FakeEndpoint().app()) as url:
        chat = f"{url}/v1/chat/completions"
        answer = posted(chat, model="scripted", messages=messages, logprobs=True, top_logprobs=3)
        plain = posted(chat, model="scripted", messages=messages)
        with pytest.raises(urllib.error.HTTPError) as refused:
            posted(chat, model="scripted", messages=messages, top_logprobs=3)
        refused.value.close()
    (choice,) = answer["choices"]
    said = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in said) == choice["message"]["content"]
    assert all(token["top_logprobs"][0]["logprob"] <= 0 for token in said)
    assert refused.value.code == 400
    assert "logprobs" not in plain["choices"][0]


def test_a_prompt_is_echoed_with_its_tokens_and_the_first_has_no_probability(served):
    with served(FakeEndpoint().app()) as url:
        answer = posted(f"{url}/v1/completions", model="scripted", prompt="é is 7", echo=True, logprobs=5, max_tokens=1)
    found = answer["choices"][0]["logprobs"]
    assert found["tokens"][:5] == ["bytes:\\xc3", "bytes:\\xa9", " is", " ", "7"]
    assert found["top_logprobs"][0] is found["token_logprobs"][0] is None
    assert set(found["top_logprobs"][4]) == {"6", "7", "8"}
    assert answer["choices"][0]["text"].startswith("é is 7")


def test_embeddings_are_the_same_as_numbers_and_in_base_64(served):
    import openai

    with served(FakeEndpoint().app()) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        packed = client.embeddings.create(model="scripted", input=["a red cat", "a blue ship"])
        plain = client.embeddings.create(model="scripted", input=["a red cat", "a blue ship"], encoding_format="float")
        client.close()
    assert [entry.index for entry in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert packed.usage.prompt_tokens > 0
