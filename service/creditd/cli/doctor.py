"""`creditd doctor`: whether what is installed here, and the service that it asks, go together; and how to mend it."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, TypeAlias

from creditd.adapters.compatibility import FRAMEWORKS, Framework, Plugin, listed
from creditd.client import Client, CreditdError
from creditd.wire.info import Info, ModelInfo
from creditd.wire.versions import METHODS_VERSION, package_version

Verdict: TypeAlias = Literal["ok", "warning", "problem", "absent"]

_PARTS = {
    "the client": ("httpx", "numpy", "pydantic", "tqdm"),
    "the service": ("fastapi", "uvicorn", "redis", "msgpack"),
    "models": ("torch", "transformers", "safetensors"),
}
"""Distributions that parts of creditd stand on."""
_HERE = "the client"
_WIDTH = 8
_SETS, _GROUPS = [[0.75, 0.25, 0.25], [0.5, 0.0, 1.0]], ["doctor", "doctor"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: What.
        verdict: `absent` is what is not there and need not be.
        says: What was found.
        remedy: How to mend it; None where there is nothing to mend.
    """

    about: str
    verdict: Verdict
    says: str
    remedy: str | None = None


def run(options: argparse.Namespace) -> int:
    """Look at everything, and print it.

    Args:
        options: Parsed command line.

    Returns:
        0; 1 if there is a problem; 2 for a framework that nobody knows.
    """
    known = {framework.distribution: framework for framework in FRAMEWORKS}
    unknown = [name for name in options.framework if name not in known]
    if unknown:
        print(f"creditd doctor: got the framework {unknown[0]}; expected {', '.join(known)}", file=sys.stderr)
        return 2
    findings = list(_installation())
    wanted = options.framework or list(known)
    for name in wanted:
        findings += _of_framework(known[name], demanded=bool(options.framework))
    if not options.no_service:
        findings += _of_service(options)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print("\n".join(_lines(findings)))
    return 1 if any(finding.verdict == "problem" for finding in findings) else 0


def _installation() -> Iterator[Finding]:
    yield Finding("creditd", "ok", f"{package_version()}, Python {platform.python_version()}")
    for part, names in _PARTS.items():
        missing = [name for name in names if _installed(name) is None]
        if not missing:
            yield Finding(part, "ok", ", ".join(f"{name} {_installed(name)}" for name in names))
        elif part == _HERE:
            yield Finding(part, "problem", f"{', '.join(missing)} missing", "pip install creditd")
        else:
            extra = part.rpartition(" ")[2]
            yield Finding(part, "absent", f"{', '.join(missing)} missing; pip install 'creditd[{extra}]' brings them")


def _of_framework(framework: Framework, *, demanded: bool) -> Iterator[Finding]:
    """The release, the seams, and the plug-in."""
    installed = framework.installed
    if installed is None:
        verdict: Verdict = "problem" if demanded else "absent"
        remedy = f"pip install {framework.distribution}=={_newest(framework)}" if demanded else None
        yield Finding(framework.name, verdict, "is not installed", remedy)
        return
    if framework.is_tested(installed):
        yield Finding(framework.name, "ok", f"{installed} is tested with creditd")
    else:
        remedy = f"pip install '{framework.distribution}=={_newest(framework)}', or try it: its seams are below"
        yield Finding(framework.name, "warning", f"{installed} is untested; tested: {framework.tested}", remedy)
    yield _seams_of(framework)
    if framework.plugin is not None:
        yield _plugin_of(framework, framework.plugin)


def _seams_of(framework: Framework) -> Finding:
    about = f"{framework.name}, seams"
    try:
        moved = framework.moved()
    except Exception as error:  # noqa: BLE001 - importing a framework raises whatever it likes
        says = f"{framework.name} cannot be imported: {_in_a_line(error)}"
        return Finding(about, "problem", says, _remedy_of_import(framework))
    if moved:
        remedy = f"install a release that is tested: {framework.tested}"
        return Finding(about, "problem", f"has no {listed(moved)} any more", remedy)
    return Finding(about, "ok", f"all {len(framework.seams)} are where they were")


def _remedy_of_import(framework: Framework) -> str:
    if framework.python is not None and sys.version_info[:2] < framework.python:
        wanted = ".".join(map(str, framework.python))
        return f"{framework.name} is made for Python {wanted} and newer; this is {platform.python_version()}"
    return "mend its installation: what is missing stands in the error"


def _in_a_line(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"


def _plugin_of(framework: Framework, plugin: Plugin) -> Finding:
    about = f"{framework.name}, plug-in"
    try:
        problem = plugin.problem()
    except Exception as error:  # noqa: BLE001 - as above
        problem = f"{framework.name} cannot be imported: {_in_a_line(error)}"
    if problem is None:
        return Finding(about, "ok", f"{', '.join(plugin.registers)} are registered")
    remedy = f"pip install --force-reinstall --no-deps creditd, in this environment ({sys.prefix})"
    if plugin.variable in problem:
        remedy = f"unset {plugin.variable}, or name {plugin.name} in it"
    return Finding(about, "problem", problem, remedy)


def _of_service(options: argparse.Namespace) -> Iterator[Finding]:
    """Whether it answers, what it is, and the models and weights that the run needs."""
    with Client(options.url, deadline_s=options.timeout_s) as client:
        about = f"service {client.base_url}"
        if client.base_url == "local:":
            yield Finding(about, "ok", "computes in the calling process: there is no service, and no model")
            return
        try:
            info, models = client.info(), client.models()
        except CreditdError as error:
            remedy = "start it (creditd serve), or name its address: --url, CREDITD_URL; a key goes in CREDITD_API_KEY"
            yield Finding(about, "problem", str(error), remedy)
            return
        yield _version_of(about, info)
        if not _asked(client.ready):
            yield Finding(
                about, "problem", "is not ready: it starts, or it is told to end", "wait, and look at /readyz"
            )
        yield _credit_of(about, client)
        for name in options.model:
            yield _model_of(name, models, options.weight_version)
        policies = {model.id for model in models if model.weights is not None}
        if options.weight_version is not None and not policies.intersection(options.model):
            there = ", ".join(sorted(policies)) or "none"
            says = f"{options.weight_version} was compared with nothing: no --model is a policy"
            yield Finding("weights", "problem", says, f"name one with --model; the service has {there}")


def _asked(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except CreditdError:
        return False


def _credit_of(about: str, client: Client) -> Finding:
    """Whether a small request comes back with the numbers that this process computes."""
    try:
        theirs = client.shapley(_SETS, groups=_GROUPS).advantages
    except CreditdError as error:
        return Finding(f"{about}, credit", "problem", str(error), "what it refuses, and why, stands in the error")
    with Client("local:") as local:
        ours = local.shapley(_SETS, groups=_GROUPS).advantages
    if theirs.to_list() != ours.to_list():
        says = f"answers with {theirs.to_list()}, where this process computes {ours.to_list()}"
        return Finding(f"{about}, credit", "problem", says, "install the same release on both sides")
    return Finding(f"{about}, credit", "ok", "a small request has the numbers that this process computes")


def _version_of(about: str, info: Info) -> Finding:
    theirs, ours, methods = info.service, package_version(), METHODS_VERSION
    if theirs.methods != methods:
        says = f"creditd {theirs.version} computes by methods {theirs.methods}, this is {ours} with methods {methods}"
        return Finding(about, "problem", says, "install the same release on both sides: numbers differ between these")
    if theirs.version != ours:
        says = f"creditd {theirs.version}, this is {ours}; the methods are the same"
        return Finding(about, "warning", says, "install the same release on both sides when it suits you")
    return Finding(about, "ok", f"creditd {theirs.version}, methods {theirs.methods}")


def _model_of(name: str, models: list[ModelInfo], wanted: str | None) -> Finding:
    about = f"model {name}"
    found = next((model for model in models if model.id == name), None)
    if found is None:
        there = ", ".join(f"{model.id} ({model.kind})" for model in models) or "none"
        remedy = "register it under [[models]] in the settings of the service, or name one that is there"
        return Finding(about, "problem", f"the service does not have it; it has {there}", remedy)
    if not found.alive:
        return Finding(about, "problem", "its engine has stopped", "start the service again; its log says why")
    says = f"{found.kind}, {found.backend}" + (f", {found.device}" if found.device else "")
    if found.weights is None or wanted is None:
        of = "" if found.weight_version is None else f", weights of version {found.weight_version}"
        return Finding(about, "ok", says + of)
    if wanted in {found.weight_version, *found.weights.announced_versions}:
        come = "" if wanted == found.weight_version else ", which was announced and has not come yet"
        return Finding(about, "ok", f"{says}, weights of version {wanted}{come}")
    remedy = "hand the weights over (push_policy, Client.load_weights): a service that was started again has lost them"
    return Finding(about, "problem", f"has weights of version {found.weight_version}, not {wanted}", remedy)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _newest(framework: Framework) -> str:
    numbers = ".".join(map(str, framework.newest))
    return numbers if len(framework.newest) > 2 else f"{numbers}.*"


def _lines(findings: list[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"{finding.verdict:<{_WIDTH}} {finding.about}: {finding.says}"
        if finding.remedy is not None:
            yield f"{'':<{_WIDTH}} → {finding.remedy}"
