"""`creditd doctor`: what it looks at, what it says, and its exit status."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from creditd.adapters.compatibility import TRL, Framework, Plugin, Seam
from creditd.cli import doctor
from creditd.cli.__main__ import main
from creditd.client import Client
from services import running_service

HERE = Framework("pytest", "pytest", (8,), (99,), (Seam("pytest", "fixture", ("scope",)),))
PLUGIN = Plugin("some.plugins", "creditd", ("pytest", "__all__"), ("fixture",), "PYTEST_PLUGINS")
POLICIES = Path(__file__).parents[1] / "adapters" / "policy_service.py"
NOBODY = "http://127.0.0.1:9"


def diagnosed(capsys, *arguments):
    """Exit status, and findings by what they are about."""
    status = main(["doctor", "--json", *arguments])
    return status, {finding["about"]: finding for finding in json.loads(capsys.readouterr().out)}


@pytest.fixture
def frameworks(monkeypatch):
    """Sets which frameworks there are."""
    return lambda *known: monkeypatch.setattr(doctor, "FRAMEWORKS", known)


def test_an_installation_without_problems(capsys, frameworks):
    """What is there is ok, and what need not be is absent."""
    frameworks(HERE, replace(TRL, distribution="no-such-distribution"))
    status, found = diagnosed(capsys, "--no-service")
    assert status == 0
    assert {found[about]["verdict"] for about in ("creditd", "the client", "pytest", "pytest, seams")} == {"ok"}
    assert found["TRL"]["verdict"] == "absent"
    assert all(finding["remedy"] is None for finding in found.values())


def test_lines_have_verdict_and_remedy(capsys, frameworks):
    """For people."""
    frameworks(replace(HERE, newest=(8,)))
    assert main(["doctor", "--no-service"]) == 0
    printed = capsys.readouterr().out
    assert "ok       creditd: " in printed
    assert "warning  pytest: " in printed
    assert "\n         → pip install 'pytest==8.*'" in printed


@pytest.mark.parametrize(
    ("change", "about", "says", "remedy"),
    [
        (
            {"seams": (Seam("pytest", "no_such_thing"),)},
            "pytest, seams",
            "has no pytest.no_such_thing any more",
            "tested",
        ),
        ({"seams": (Seam("no_such_module", "x"),)}, "pytest, seams", "cannot be imported", "mend its installation"),
        (
            {"seams": (Seam("no_such_module", "x"),), "python": (9, 1)},
            "pytest, seams",
            "cannot be imported: ModuleNotFoundError",
            "is made for Python 9.1 and newer; this is 3",
        ),
        ({"plugin": PLUGIN}, "pytest, plug-in", "no entry point creditd under some.plugins", "--force-reinstall"),
    ],
)
def test_what_does_not_fit_is_a_problem(capsys, frameworks, change, about, says, remedy):
    """A seam that moved, a framework that is broken, a plug-in that is not registered."""
    frameworks(replace(HERE, **change))
    status, found = diagnosed(capsys, "--no-service")
    assert status == 1
    assert found[about]["verdict"] == "problem"
    assert says in found[about]["says"]
    assert remedy in found[about]["remedy"]


def test_a_framework_that_is_wanted_has_to_be_here(capsys, frameworks):
    """What nobody asked for need not; a name that nobody knows is said to be none."""
    frameworks(HERE, replace(TRL, distribution="no-such-distribution"))
    status, found = diagnosed(capsys, "--no-service", "--framework", "no-such-distribution")
    assert (status, found["TRL"]["verdict"]) == (1, "problem")
    assert main(["doctor", "--no-service", "--framework", "slime"]) == 2
    assert "expected pytest, no-such-distribution" in capsys.readouterr().err


def test_a_service_that_answers_nothing_is_a_problem(capsys, frameworks):
    """With its address, and how to start one."""
    frameworks()
    status, found = diagnosed(capsys, "--url", NOBODY, "--timeout-s", "0.2")
    assert status == 1
    assert "creditd serve" in found[f"service {NOBODY}"]["remedy"]


def test_a_service_is_asked_for_a_small_credit(capsys, frameworks, tmp_path):
    """The numbers of this process; a model that it does not have is named with those that it has."""
    frameworks()
    with running_service(directory=tmp_path) as url:
        status, found = diagnosed(capsys, "--url", url)
        assert status == 0
        assert found[f"service {url}, credit"]["verdict"] == "ok"
        status, found = diagnosed(capsys, "--url", url, "--model", "rm")
    assert status == 1
    assert found["model rm"]["says"] == "the service does not have it; it has none"


def test_weights_that_a_policy_does_not_have_are_a_problem(capsys, frameworks, tmp_path):
    """Those that it has, and those that were announced, are none."""
    frameworks()
    with running_service(script=POLICIES, directory=tmp_path) as url:
        with Client(url) as client:
            policy = next(model for model in client.models() if model.id == "policy")
            client.announce_weights(policy.id, weight_version="run:7")
        arguments = ("--url", url, "--model", policy.id, "--weight-version")
        status, found = diagnosed(capsys, *arguments, policy.weight_version)
        assert (status, found[f"model {policy.id}"]["verdict"]) == (0, "ok")
        status, found = diagnosed(capsys, *arguments, "run:7")
        assert (status, "has not come yet" in found[f"model {policy.id}"]["says"]) == (0, True)
        status, found = diagnosed(capsys, *arguments, "run:8")
        assert status == 1
        assert "push_policy" in found[f"model {policy.id}"]["remedy"]
        status, found = diagnosed(capsys, "--url", url, "--weight-version", "run:8")
    assert (status, found["weights"]["verdict"]) == (1, "problem")
    assert "policy" in found["weights"]["remedy"]


def test_a_plug_in_that_is_registered_is_ok(capsys, frameworks):
    """By the names that it has registered."""
    frameworks(replace(HERE, plugin=replace(PLUGIN, group="console_scripts")))
    status, found = diagnosed(capsys, "--no-service")
    assert (status, found["pytest, plug-in"]["verdict"]) == (0, "ok")


def test_a_service_of_other_methods_is_a_problem(capsys, frameworks, tmp_path, monkeypatch):
    """Numbers would differ; another release of the same methods is a warning."""
    frameworks()
    with running_service(directory=tmp_path) as url:
        monkeypatch.setattr(doctor, "package_version", lambda: "9.9.9")
        status, found = diagnosed(capsys, "--url", url)
        assert (status, found[f"service {url}"]["verdict"]) == (0, "warning")
        monkeypatch.setattr(doctor, "METHODS_VERSION", 9)
        status, found = diagnosed(capsys, "--url", url)
    assert (status, found[f"service {url}"]["verdict"]) == (1, "problem")
    assert "methods 1, this is 9.9.9 with methods 9" in found[f"service {url}"]["says"]
