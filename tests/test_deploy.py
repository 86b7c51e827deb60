"""The files in `deploy/` are what Kubernetes accepts, hold no secret, and name what the project knows."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from resources.settings import HOME, Settings

DEPLOY = Path(__file__).parents[1] / "deploy"
KNOWN = {f"NEURONLEDGER_{name.upper()}" for name in Settings.model_fields} | {HOME}
SECRET = re.compile(r"(?i)(secret_access_key|password|api_key|ledger_token)\s*[:=]\s*\S")


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((DEPLOY / name).read_text("utf-8")) if document]


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every container of a manifest, wherever its pod is described."""
    found: list[dict[str, Any]] = []
    if isinstance(document, dict):
        found += document.get("containers") or []
        for value in document.values():
            found += containers(value)
    if isinstance(document, list):
        for value in document:
            found += containers(value)
    return found


def test_each_manifest_is_one_that_kubernetes_accepts() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    kinds = []
    for document in documents("kubernetes.yaml"):
        validate.validate(document, validate.latest_version(), strict=True)
        kinds.append(document["kind"])
    assert kinds == ["Namespace", "ConfigMap", "PersistentVolumeClaim", "Deployment", "Job"]


def test_each_pod_of_the_ray_job_is_one_that_kubernetes_accepts() -> None:
    """KubeRay's own kind is not among Kubernetes' schemas; the pods that it makes are."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    (job,) = documents("ray.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        validate.validate(pod, validate.latest_version(), strict=True)
    locked = (DEPLOY / "requirements.lock").read_text("utf-8")
    assert f"ray=={cluster['rayVersion']}\n" in locked


def test_a_manifest_with_a_wrong_word_is_refused() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    job = documents("kubernetes.yaml")[-1]
    job["spec"]["template"]["spec"]["containers"][0]["memroy"] = "1Gi"
    with pytest.raises(validate.ValidationError, match="memroy"):
        validate.validate(job, validate.latest_version(), strict=True)


def test_settings_of_the_manifests_are_settings_and_none_is_a_secret() -> None:
    (settings,) = [document for document in documents("kubernetes.yaml") if document["kind"] == "ConfigMap"]
    ours = {name for name in settings["data"] if name.startswith("NEURONLEDGER_")}
    assert ours
    assert ours <= KNOWN
    for path in DEPLOY.iterdir():
        text = re.sub(r"=<[^>]*>", "", path.read_text("utf-8"))
        assert not SECRET.search(text), path


@pytest.mark.parametrize("name", ["kubernetes.yaml", "ray.yaml"])
def test_no_container_is_root_or_may_become_it(name: str) -> None:
    for document in documents(name):
        for container in containers(document):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "limits" in container["resources"]
    assert "USER 10001" in (DEPLOY / "Containerfile").read_text("utf-8")
    assert "--extra-index" not in (DEPLOY / "Containerfile").read_text("utf-8")
