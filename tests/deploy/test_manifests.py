import copy
import re

import kubernetes_validate
import pytest
import yaml

from .conftest import ROOT

MANIFESTS = sorted((ROOT / "deploy" / "k8s").rglob("*.y*ml"))
# 1.29 is the first with native sidecars on by default, 1.33 the first with stable ones.
VERSIONS = ["1.29", "1.33", kubernetes_validate.latest_version()]
PROBES = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


@pytest.fixture(scope="module")
def job():
    """The Job of the sidecar recipe."""
    (document,) = documents(ROOT / "deploy" / "k8s" / "sidecar.yaml")
    return document


@pytest.fixture(scope="module")
def pod(job):
    """The spec of the Job's Pod."""
    return job["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def sidecar(pod):
    """The one init container: creditd."""
    (container,) = pod["initContainers"]
    return container


@pytest.fixture(scope="module")
def trainer(pod):
    """The one ordinary container: the trainer."""
    (container,) = pod["containers"]
    return container


def environment(container):
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_document_is_valid_in_strict_mode(path, version):
    """Every document of every manifest has the schema of its kind, with no field that the schema does not know."""
    assert documents(path)
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_validation_sees_a_misspelt_field(job, version):
    """A wrong field name fails, so a passing manifest says something."""
    wrong = copy.deepcopy(job)
    wrong["spec"]["template"]["spec"]["initContainers"][0]["restartpolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="restartpolicy"):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_creditd_is_a_native_sidecar(pod, sidecar):
    """An init container that is always restarted does not keep the Job from completing; the trainer may end."""
    assert sidecar["restartPolicy"] == "Always"
    assert pod["restartPolicy"] == "Never"


def test_the_image_has_the_version_of_the_project(sidecar, version):
    """The manifest runs the version that it lies beside."""
    assert sidecar["image"].rpartition(":")[2] == version


def test_the_service_listens_on_loopback_at_the_port_of_the_image(sidecar, port):
    """The arguments replace the image's CMD, so that the environment decides: loopback, and the exposed port."""
    assert sidecar["args"] == ["serve"]
    assert environment(sidecar)["CREDITD_HOST"] == "127.0.0.1"
    assert environment(sidecar)["CREDITD_PORT"] == str(port)
    assert "ports" not in sidecar


def test_the_trainer_is_told_the_address_of_the_service(sidecar, trainer):
    """CREDITD_URL is the address that the sidecar listens on."""
    listens = environment(sidecar)
    assert environment(trainer)["CREDITD_URL"] == f"http://{listens['CREDITD_HOST']}:{listens['CREDITD_PORT']}"


@pytest.mark.parametrize(("name", "path"), PROBES.items())
def test_probes_run_inside_the_container(sidecar, name, path):
    """A loopback listener cannot be reached by the kubelet, so each probe is a command, and asks the right path."""
    probe = sidecar[name]
    assert set(probe) & {"exec", "httpGet", "tcpSocket", "grpc"} == {"exec"}
    assert probe["exec"]["command"][-1] == path


@pytest.mark.parametrize(("name", "path"), PROBES.items())
@pytest.mark.parametrize(("status", "passes"), [(200, True), (503, False), (401, False)])
def test_probes_pass_on_200_alone(sidecar, probe_exits, name, path, status, passes):
    """The command exits 0 when its path answers 200, and not otherwise; no proxy comes between."""
    other = dict.fromkeys(PROBES.values(), 503 if passes else 200)
    assert (probe_exits(sidecar[name]["exec"]["command"], {**other, path: status}) == 0) is passes


def test_a_draining_service_is_alive_and_not_ready(sidecar, probe_exits):
    """While the service drains the kubelet takes it for unready and does not restart it."""
    draining = {"/livez": 200, "/readyz": 503}
    exits = {name: probe_exits(sidecar[name]["exec"]["command"], draining) for name in PROBES}
    assert {name for name, code in exits.items() if code == 0} == {"livenessProbe"}


@pytest.mark.parametrize("name", PROBES)
def test_the_kubelet_waits_longer_than_the_probe(sidecar, name):
    """The probe's own timeout ends it, so that the kubelet never has to kill a Python process."""
    code = sidecar[name]["exec"]["command"][3]
    assert "timeout=4" in code
    assert sidecar[name]["timeoutSeconds"] > 4


def test_the_grace_period_outlasts_the_drain(pod, sidecar):
    """Trainer and sidecar share the grace period, so it leaves the trainer time before the drain."""
    assert pod["terminationGracePeriodSeconds"] >= int(environment(sidecar)["CREDITD_DRAIN_TIMEOUT_S"]) + 60


def test_no_container_is_root_or_may_become_root(pod, sidecar, trainer, dockerfile):
    """The Pod runs as the image's own number, without privileges, capabilities or a writable root file system."""
    user, group = map(int, dockerfile.only("USER").text.split(":"))
    security = pod["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, user, group)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (sidecar, trainer):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_nothing_of_the_cluster_is_handed_to_the_pod(pod):
    """No API token, and no variables of Services: one named `creditd` would set CREDITD_PORT to a URL."""
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False


def test_every_container_states_what_it_needs(sidecar, trainer):
    """Requests and a memory limit for both; the GPU belongs to the trainer alone."""
    for container in (sidecar, trainer):
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
    assert "nvidia.com/gpu" not in sidecar["resources"]["limits"]


def test_every_mounted_volume_exists_and_is_used(pod, sidecar, trainer):
    """Mounts and volumes name each other, and both containers can write to /tmp."""
    mounted = [mount["name"] for container in (sidecar, trainer) for mount in container["volumeMounts"]]
    assert sorted(mounted) == sorted(volume["name"] for volume in pod["volumes"])
    for container in (sidecar, trainer):
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}  # noqa: S108 - a mount point


def test_what_the_user_replaces_is_marked():
    """Every image line carries the mark; `.invalid` is no host, so the placeholder can never be pulled."""
    lines = (ROOT / "deploy" / "k8s" / "sidecar.yaml").read_text().splitlines()
    images = [line for line in lines if line.lstrip().startswith("image:")]
    assert len(images) == 2
    assert all("# REPLACE:" in line for line in images)
    assert sum(".invalid/" in line for line in images) == 1


def test_the_readme_gives_the_numbers_of_the_files(pod, sidecar, port, version):
    """The port, the version, the user, the timeouts and the variables in deploy/README.md are those of the files."""
    text = (ROOT / "deploy" / "README.md").read_text()
    drain = int(environment(sidecar)["CREDITD_DRAIN_TIMEOUT_S"])
    assert set(re.findall(r":(\d+) creditd:", text)) == {str(port)}
    assert set(re.findall(r"(?<![\w-])creditd:(\d\S*)", text)) == {version}
    assert set(re.findall(r"\buser (\d+)", text)) == {str(pod["securityContext"]["runAsUser"])}
    assert f"`terminationGracePeriodSeconds` is {pod['terminationGracePeriodSeconds']} " in text
    assert f"`CREDITD_DRAIN_TIMEOUT_S` seconds at most, {drain} unless set" in text
    assert {int(seconds) > drain for seconds in re.findall(r"--stop-timeout (\d+)", text)} == {True}
    startup = sidecar["startupProbe"]
    assert f"up to {startup['failureThreshold']} tries, {startup['periodSeconds']} s apart" in text
    liveness = sidecar["livenessProbe"]
    assert f"after {liveness['failureThreshold']} failures, {liveness['periodSeconds']} s apart" in text
    assert pod["terminationGracePeriodSeconds"] - drain == int(re.search(r"more than (\d+) s", text)[1])
