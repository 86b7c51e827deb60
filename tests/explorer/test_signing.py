"""Signed heads: who vouches for a lake, and what is found if it was written anew by somebody else."""

import json
import shutil
import subprocess
from pathlib import Path

import dagster as dg
import pytest

from assets import definitions
from explorer import offline
from resources.settings import load

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH's ssh-keygen is not installed")


@pytest.fixture
def signers(copied) -> Path:
    """Ada's key is `key` in the project folder, and she may sign; another key, `stranger`, may not."""
    for name in ("key", "stranger"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(copied.home / name)]
        subprocess.run(words, check=True)
    allowed = copied.home / "allowed_signers"
    allowed.write_text(f"ada {(copied.home / 'key.pub').read_text()}")
    return allowed


def a2(folder, *words):
    checks = json.loads(folder.type("audit", "--quick", "--json", *words).stdout)["checks"]
    return next(check for check in checks if check["id"] == "A2")


def signatures(folder) -> list[Path]:
    return sorted((folder.home / "lake" / "subject" / "_ledger" / "signatures").glob("*.sig"))


def test_a_run_signs_its_head_and_an_audit_says_by_whom(copied, signers):
    said = copied.type("run", "--neurons", "0:1", "--sign-with", "key").stdout.splitlines()
    assert said[-2].split() == ["the", "ledger", copied.lake.ledger_head()]
    assert said[-1].startswith("signed with ")
    assert (copied.home / "key").read_text() not in "".join(said)
    found = a2(copied, "--signers", str(signers))
    assert found["findings"] == []
    assert any(note.startswith("ada signed line ") and "0 lines came after" in note for note in found["notes"])
    assert "1 heads are signed; `--signers FILE` tells by whom" in a2(copied)["notes"]
    assert copied.type("export", "prov", "bundle").exit_code == 0
    assert offline.look(copied.home / "bundle", signers=signers)[0] == []
    # Whoever has OpenSSH needs none of this.
    (file,) = signatures(copied)
    words = ["ssh-keygen", "-Y", "verify", "-n", "neuronledger", "-f", str(signers), "-I", "ada", "-s", str(file)]
    assert not subprocess.run(
        words, input=f"sha256:{file.stem}", text=True, check=False, capture_output=True
    ).returncode

    # Another's signature, one that was moved to another head, and a head that was never written.
    file.rename(file.with_name("0" * 64 + ".sig"))
    (finding, none) = a2(copied, "--signers", str(signers))["findings"]
    assert f"a signature is of the head sha256:{'0' * 64}, which the ledger does not hold" in finding
    assert none.startswith("no head is signed by any of")
    signatures(copied)[0].unlink()
    copied.type("run", "--neurons", "0:1", "--sign-with", "stranger")
    assert any("is by none of" in finding for finding in a2(copied, "--signers", str(signers))["findings"])
    assert copied.type("export", "prov", "again").exit_code == 0
    assert "is by none of" in offline.look(copied.home / "again", signers=signers)[0][0]


def test_a_key_that_is_not_there_is_said_before_anything_runs(copied):
    result = copied.type("run", "--neurons", "0:1", "--sign-with", "nowhere")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is no file; give an SSH key, made by `ssh-keygen -t ed25519 -f FILE`" in result.stderr


def test_a_run_that_dagster_started_is_signed_when_it_has_ended(copied, signers, monkeypatch):
    monkeypatch.chdir(copied.home)
    built = definitions.build(load(sign_with="key"))
    sensors = {sensor.name: sensor for sensor in built.sensors or ()}
    assert {f"sign_the_head_after_{end}" for end in ("success", "failure", "canceled")} < set(sensors)
    assert not [sensor for sensor in definitions.build(load()).sensors or () if "sign" in sensor.name]
    with dg.DagsterInstance.ephemeral() as instance:
        ended = dg.GraphDefinition(name="run").to_job().execute_in_process(instance=instance)
        context = dg.build_run_status_sensor_context(
            "sign_the_head_after_success", ended.get_run_success_event(), instance, ended.dagster_run
        )
        skipped = sensors["sign_the_head_after_success"](context)
    head = copied.lake.ledger_head()
    assert skipped.skip_message == f"signed {head}, after run {ended.run_id}"
    assert [f"sha256:{file.stem}" for file in signatures(copied)] == [head]
    assert any(note.startswith("ada signed line ") for note in a2(copied, "--signers", str(signers))["notes"])
