"""What adapters know of trainers: which releases are tested, and where they take hold of them."""

import sys
import types
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from creditd.adapters import compatibility
from creditd.adapters.compatibility import FRAMEWORKS, TRL, Framework, Plugin, Seam, SeamMovedError, demand_seams


class Trainer:
    """A trainer of some framework."""

    def step(self, batch):
        """A step."""


@pytest.fixture
def framework(monkeypatch):
    """It, in a module of its own."""
    module = types.ModuleType("a_framework")
    module.Trainer = Trainer
    monkeypatch.setitem(sys.modules, "a_framework", module)
    monkeypatch.setattr(compatibility, "version", lambda _: "3.1.4")
    return Framework("A", "a", (3, 0, 1), (3, 1), (Seam("a_framework", "Trainer.step", ("batch",)),))


@pytest.mark.parametrize(
    ("release", "tested"),
    [
        ("1.14.1", False), ("1.14.2", True), ("1.15.0", False), ("1.16", True), ("1.16.9+cpu", True),
        ("1.17.0", False), ("2.0", False), ("0.9", False), ("nightly", False),
    ],
)  # fmt: skip
def test_releases_are_told_apart(release, tested):
    """From the oldest to all corrections of the newest, without those that are left out."""
    assert TRL.is_tested(release) is tested
    assert TRL.tested == "1.14.2 to 1.16 without 1.15"


def test_seams_that_are_there_pass(framework):
    """By name, and by the names of parameters."""
    assert framework.moved() == []
    demand_seams(framework)
    assert framework.installed == "3.1.4"


@pytest.mark.parametrize(
    ("seam", "name"),
    [
        (Seam("a_framework", "Trainer.walk"), "a_framework.Trainer.walk"),
        (Seam("a_framework", "Walker.step"), "a_framework.Walker.step"),
        (Seam("a_framework", "Trainer.step", ("batch", "pace")), r"a_framework.Trainer.step\(batch, pace\)"),
    ],
)
def test_a_seam_that_moved_is_named(framework, seam, name):
    """With the release, and those that are tested."""
    moved = replace(framework, seams=(*framework.seams, seam))
    with pytest.raises(SeamMovedError, match=f"A 3.1.4 has no {name} any more; expected .* tested with: 3.0.1 to 3.1"):
        demand_seams(moved)


def test_what_is_not_installed_has_no_release():
    """And a framework without a plug-in needs none."""
    assert replace(TRL, distribution="no-such-distribution").installed is None
    assert TRL.plugin is None


def test_a_module_that_is_gone_is_a_seam_that_moved(framework, monkeypatch):
    """One of the framework; the framework itself, or what it needs, is another matter."""
    monkeypatch.setattr(sys.modules["a_framework"], "__path__", [], raising=False)
    with pytest.raises(SeamMovedError, match=r"no a_framework\.parts\.Trainer any more"):
        demand_seams(replace(framework, seams=(Seam("a_framework.parts", "Trainer"),)))
    with pytest.raises(ModuleNotFoundError):
        demand_seams(replace(framework, seams=(Seam("another_framework.parts", "Trainer"),)))


LOADS = Plugin("console_scripts", "creditd", ("a_framework", "KNOWN"), ("creditd_one",), "A_PLUGINS")
"""creditd's command as if it were a plug-in: it can be loaded, and registers nothing."""


@pytest.fixture
def known(framework, monkeypatch):
    """What the framework has registered."""
    del framework
    names = {}
    monkeypatch.setattr(sys.modules["a_framework"], "KNOWN", names, raising=False)
    return names


def test_a_plug_in_is_known_by_what_it_has_registered(known, monkeypatch):
    """An entry point alone says nothing: who loads it may hide that it failed, or be told not to."""
    assert LOADS.problem() == "creditd_one is not registered, though its plug-in can be loaded"
    monkeypatch.setenv("A_PLUGINS", "none")
    assert LOADS.problem() == "creditd_one is not registered: A_PLUGINS=none keeps its plug-in out"
    known["creditd_one"] = print
    assert LOADS.problem() is None


def test_a_plug_in_that_is_not_there_or_fails_is_said(known, monkeypatch):
    """With the error that was hidden."""
    del known
    assert replace(LOADS, name="of-another-day").problem() == "no entry point of-another-day under console_scripts"
    broken = EntryPoint("creditd", "no.such.module", "console_scripts")
    monkeypatch.setattr(compatibility, "entry_points", lambda **_: [broken])
    assert "cannot be loaded: ModuleNotFoundError: No module named 'no'" in LOADS.problem()


@pytest.mark.trainer
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda one: one.distribution)
def test_the_seams_of_what_is_installed_are_where_they_were(framework):
    """Of the real package, in the lane that has it."""
    if framework.installed is None:
        pytest.skip(f"{framework.name} is not in this environment")
    assert framework.is_tested(framework.installed)
    assert framework.moved() == []
    assert framework.plugin is None or framework.plugin.problem() is None
