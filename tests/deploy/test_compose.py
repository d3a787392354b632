import re

import jsonschema
import pytest
import yaml

from creditd.server.settings import Settings

from .conftest import ROOT

TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1, "uniqueItems": True}


def closed(required, **properties):
    """The schema of an object that has no other fields than these."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


DURATION = {"type": "string", "pattern": r"^\d+[smh]$"}
SERVICE = closed(
    ["image", "read_only", "cap_drop", "security_opt", "mem_limit", "healthcheck", "restart"],
    image={"type": "string", "pattern": r"^[a-z]+:[\w.-]+$"},
    build=closed(["context"], context=TEXT),
    command=TEXTS,
    user={"type": "string", "pattern": r"^[1-9]\d*:[1-9]\d*$"},
    environment={"type": "object", "additionalProperties": TEXT},
    secrets=TEXTS,
    ports=TEXTS,
    networks=TEXTS,
    volumes=TEXTS,
    healthcheck=closed(
        ["test", "interval", "timeout", "retries"],
        test={**TEXTS, "items": TEXT},
        interval=DURATION,
        timeout=DURATION,
        start_period=DURATION,
        retries={"type": "integer"},
    ),
    stop_grace_period=DURATION,
    restart={"const": "unless-stopped"},
    read_only={"const": True},
    tmpfs=TEXTS,
    cap_drop={"const": ["ALL"]},
    security_opt={"const": ["no-new-privileges:true"]},
    mem_limit={"type": "string", "pattern": r"^\d+[mg]$"},
)
COMPOSE = closed(
    ["name", "services", "networks", "secrets"],
    name=TEXT,
    services=closed(["creditd", "redis"], creditd=SERVICE, redis=SERVICE),
    networks={"type": "object", "additionalProperties": closed([], internal={"type": "boolean"})},
    secrets={"type": "object", "additionalProperties": closed(["file"], file=TEXT)},
)
"""What of the Compose Specification is used, with the hardening that no container may lack."""
UNITS = {"m": 2**20, "mb": 2**20, "Mi": 2**20, "g": 2**30, "gb": 2**30, "Gi": 2**30}


@pytest.fixture(scope="module")
def compose():
    """The compose file."""
    return yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def creditd(compose):
    """The service of that name."""
    return compose["services"]["creditd"]


@pytest.fixture(scope="module")
def redis(compose):
    """The service of that name."""
    return compose["services"]["redis"]


@pytest.fixture(scope="module")
def redis_deployment():
    """The Deployment of deploy/k8s/redis.yaml."""
    return redis_documents()["Deployment"]


def redis_documents():
    return {document["kind"]: document for document in yaml.safe_load_all((ROOT / "deploy/k8s/redis.yaml").read_text())}


def n_bytes(text):
    """A size as compose, Kubernetes and Redis write it, in bytes."""
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", text).groups()
    return int(number) * UNITS[unit]


def configured(name):
    """The value of an option in redis.conf."""
    return re.search(rf"^{name} (.+)$", (ROOT / "deploy/redis/redis.conf").read_text(), re.MULTILINE)[1]


def test_the_file_has_the_fields_that_compose_knows(compose):
    """Every field is one of the specification, and every container is hardened as the sidecar is."""
    jsonschema.validate(compose, COMPOSE)


def test_the_validation_sees_a_misspelt_field(compose):
    """A wrong field name fails, so a file that passes says something."""
    wrong = {**compose, "services": {**compose["services"]}}
    wrong["services"]["redis"] = {**wrong["services"]["redis"], "readonly": True}
    with pytest.raises(jsonschema.ValidationError, match="readonly"):
        jsonschema.validate(wrong, COMPOSE)


def test_names_within_the_file_agree(compose):
    """Each network and secret that a service uses is declared, and each that is declared is used."""
    services = compose["services"].values()
    assert {name for one in services for name in one["networks"]} - {"default"} == set(compose["networks"])
    assert {name for one in services for name in one["secrets"]} == set(compose["secrets"])


def test_creditd_waits_for_no_redis(creditd):
    """The service starts whether Redis does or not, and its health does not ask for it."""
    assert "depends_on" not in creditd
    assert creditd["healthcheck"]["test"][-1] == "/readyz"


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_readyz(creditd, port, probe_exits, status, healthy):
    """The container is healthy exactly when /readyz answers 200; the image has Python and no curl."""
    kind, *command = creditd["healthcheck"]["test"]
    assert kind == "CMD"
    assert f"'127.0.0.1', {port}," in command[3]
    assert (probe_exits(command, {"/readyz": status, "/livez": 200}) == 0) is healthy


def test_creditd_is_reached_from_this_machine_alone_and_redis_from_nowhere(compose, creditd, redis, port):
    """One port is published, to loopback; the network of Redis has no way out."""
    assert creditd["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert "ports" not in redis
    assert redis["networks"] == ["cache"]
    assert compose["networks"]["cache"]["internal"] is True


def test_the_image_is_built_here_with_the_version_of_the_project(creditd, version):
    """The context is the checkout, and the tag its version."""
    assert (ROOT / "deploy" / creditd["build"]["context"]).resolve() == ROOT
    assert creditd["image"] == f"creditd:{version}"


def test_the_grace_period_outlasts_the_drain(creditd):
    """Compose kills later than the drain ends."""
    assert int(creditd["stop_grace_period"][:-1]) > int(creditd["environment"]["CREDITD_DRAIN_TIMEOUT_S"])


def test_redis_runs_the_recipe_as_the_user_of_the_image(redis, dockerfile):
    """Both containers run as one number, because both read the password of the service."""
    assert redis["user"] == dockerfile.only("USER").text
    source, target, mode = redis["volumes"][0].split(":")
    assert {path.name for path in (ROOT / "deploy" / source).iterdir()} == {"redis.conf", "start.sh", "users.acl"}
    assert mode == "ro"
    assert redis["command"][:2] == ["sh", f"{target}/start.sh"]


def test_no_password_stands_in_the_recipes(compose, creditd, redis):
    """Passwords are files that git ignores, mounted where the commands look for them; the secret has no default."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"deploy/secrets/", "deploy/.env"} <= set(ignored)
    assert {secret["file"].rpartition("/")[0] for secret in compose["secrets"].values()} == {"./secrets"}
    assert redis["command"][2:] == [f"/run/secrets/{name}" for name in redis["secrets"]]
    assert creditd["secrets"] == redis["secrets"][:1]
    assert creditd["environment"]["CREDITD_REDIS_PASSWORD_FILE"] == redis["command"][2]
    assert creditd["environment"]["CREDITD_CACHE_SECRET"].startswith("${CREDITD_CACHE_SECRET:?")
    assert creditd["environment"]["CREDITD_REDIS_URL"] == f"redis://creditd@redis:{configured('port')}/0"


def test_redis_has_more_memory_than_it_may_fill(redis, redis_deployment):
    """Both containers leave a quarter of maxmemory for fragmentation at least."""
    (container,) = redis_deployment["spec"]["template"]["spec"]["containers"]
    for limit in (redis["mem_limit"], container["resources"]["limits"]["memory"]):
        assert n_bytes(limit) >= 1.25 * n_bytes(configured("maxmemory"))


def test_redis_in_a_cluster_runs_the_same_recipe(redis, redis_deployment, dockerfile):
    """The same image, start and user as in compose, hardened as the sidecar is."""
    pod = redis_deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == redis["image"]
    assert container["args"][:2] == redis["command"][:2]
    assert (
        f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == dockerfile.only("USER").text
    )
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert container["args"][1].startswith(f"{mounts['recipe']}/")
    keys = [item["path"] for volume in pod["volumes"] if "secret" in volume for item in volume["secret"]["items"]]
    assert container["args"][2:] == [f"{mounts['passwords']}/{key}" for key in keys]


def test_the_sidecar_is_let_through_to_redis_and_uses_it_if_there_is_a_secret():
    """Its Pod has the label that the policy asks for; what it takes of the Secret may be missing, all of it."""
    documents = redis_documents()
    service, policy = documents["Service"], documents["NetworkPolicy"]
    template = yaml.safe_load((ROOT / "deploy/k8s/sidecar.yaml").read_text())["spec"]["template"]
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == labels
    (allowed,) = policy["spec"]["ingress"][0]["from"]
    assert allowed["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert policy["spec"]["egress"] == []
    taken = {
        variable["name"]: variable["valueFrom"]["secretKeyRef"]
        for variable in template["spec"]["initContainers"][0]["env"]
        if "valueFrom" in variable
    }
    assert set(taken) == {"CREDITD_REDIS_URL", "CREDITD_REDIS_PASSWORD", "CREDITD_CACHE_SECRET"}
    volumes = documents["Deployment"]["spec"]["template"]["spec"]["volumes"]
    (secret,) = [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]
    assert {(source["name"], source["optional"]) for source in taken.values()} == {(secret, True)}


def test_the_service_of_redis_sets_no_variable_of_creditd():
    """Kubernetes makes variables of the name of a Service; those of this one do not look like a setting."""
    assert not redis_documents()["Service"]["metadata"]["name"].startswith("creditd")


def test_creditd_understands_the_settings_of_the_recipes(creditd, tmp_path, monkeypatch):
    """Every variable is a setting, and those of compose give the service its Redis and the password of the file."""
    password = tmp_path / "password"
    password.write_text("the-password\n")
    environment = {**creditd["environment"], "CREDITD_REDIS_PASSWORD_FILE": str(password)}
    sidecar = yaml.safe_load((ROOT / "deploy/k8s/sidecar.yaml").read_text())["spec"]["template"]["spec"]
    names = {*environment, *(variable["name"] for variable in sidecar["initContainers"][0]["env"])}
    assert names <= {f"CREDITD_{name.upper()}" for name in Settings.model_fields}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    choice = Settings().redis
    assert (choice.url, choice.password) == (environment["CREDITD_REDIS_URL"], "the-password")


def test_the_readme_lists_the_permissions_of_the_users():
    """The table of users is what the users file says."""
    text = (ROOT / "deploy/README.md").read_text()
    service, admin = (re.search(rf"^\| `{name}` .*$", text, re.MULTILINE)[0] for name in ("creditd", "creditd-admin"))
    for name, row, listed in (("creditd", service, service), ("creditd-admin", admin, service + admin)):
        rules = re.search(rf"^user {name} (.*)$", (ROOT / "deploy/redis/users.acl").read_text(), re.MULTILINE)[1]
        permitted = {command.upper().replace("|", " ") for command in re.findall(r"\+(\S+)", rules)}
        assert set(re.findall(r"\b(?:CLIENT |MEMORY )?[A-Z]{3,}\b", listed)) == permitted
        assert "`creditd:*`" in row
