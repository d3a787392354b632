"""The `creditd` command: each of its commands is imported when it is asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from creditd.wire.versions import package_version


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after `creditd`; those of the process when absent.

    Returns:
        Exit status: 0 when all went well, 1 when some lines of a file failed, completions have no credit or no
        picture, an answer differs from its recording, or Redis did not do what it was asked or has no sound value, 2
        when the command, the settings or a recording were not understood.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="creditd", description="Credit assignment for RL post-training.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the HTTP service", description="Run the HTTP service.")
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default 8400, 0 takes a free one)")
    serve.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings; CREDITD_… variables win")
    serve.set_defaults(run=_serve)

    shapley = commands.add_parser(
        "shapley",
        help="credit for candidate sets in a JSONL file",
        description="Credit for the candidate sets of a JSONL file: one set per line in, one result per line out.",
    )
    shapley.add_argument("file", metavar="FILE.jsonl", help="candidate sets, one JSON object per line; - reads stdin")
    shapley.add_argument("--output", "-o", type=Path, metavar="FILE", help="where results go (default: stdout)")
    shapley.add_argument("--url", default="local:", help="service to ask (default: computed in this process)")
    shapley.add_argument("--utility", default="max", help='name, or JSON such as \'{"type": "top_m", "m": 2}\'')
    shapley.add_argument("--aggregation", help="how named rewards become one credit, name or JSON")
    shapley.add_argument("--credit", default="shapley", help="name of the rule, or JSON")
    shapley.add_argument("--advantage", default="pooled", help="name of the normalisation, or JSON")
    shapley.add_argument("--tokens", help='JSON such as \'{"other": "set"}\': ask for token advantages')
    shapley.add_argument(
        "--batch-size", type=_positive, default=512, help="sets per request; groups stay whole (default 512)"
    )
    shapley.add_argument("--timeout-s", type=float, default=300.0, help="seconds for one batch, retries included")
    shapley.add_argument("--quiet", action="store_true", help="no progress bar")
    shapley.set_defaults(run=_shapley)

    explain = commands.add_parser(
        "explain",
        help="show what the parts of completions are worth to a reward model",
        description="Show completions with the credit of their units (SCAR) as one page of HTML, or as a picture.",
    )
    _add_explain_arguments(explain)

    replay = commands.add_parser(
        "replay",
        help="ask a recorded exchange again and compare the bits",
        description="Ask again what Client(record=…) recorded, compare every number bit for bit, print the ledger. "
        "Exit status: 0 identical, 1 different, 2 nothing to compare.",
    )
    replay.add_argument("files", metavar="FILE", nargs="+", help="exchanges that Client(record=…) wrote")
    replay.add_argument("--url", default="local:", help="service to ask (default: computed in this process)")
    replay.add_argument("--timeout-s", type=float, default=300.0, help="seconds for one file, retries included")
    replay.set_defaults(run=_replay)

    cache = commands.add_parser(
        "cache",
        help="look at the utilities in Redis, or have a model's forgotten",
        description="Look at the utilities that are remembered in Redis, or have a model's or callers' forgotten.",
    )
    _add_cache_commands(cache)

    doctor = commands.add_parser(
        "doctor",
        help="look whether installation, trainers and service go together",
        description="Look at what is installed here, at trainers and the seams that adapters stand on, and at the "
        "service that is asked; say how to mend what does not go together. Exit status: 0 no problem, 1 a problem, 2 a "
        "framework that nobody knows.",
    )
    _add_doctor_arguments(doctor)

    utilities = commands.add_parser(
        "utilities",
        help="print every utility: name, formula, cost, what it climbs, a request",
        description="Print every utility as Markdown: name, formula, cost, what it climbs, a request that works.",
    )
    utilities.set_defaults(run=_utilities)

    openapi = commands.add_parser(
        "openapi",
        help="print the OpenAPI document of the service",
        description="Print the OpenAPI document of the service, as GET /openapi.json answers it.",
    )
    openapi.set_defaults(run=_openapi)

    version = commands.add_parser("version", help="print the version", description="Print the version.")
    version.set_defaults(run=_version)
    return parser


def _add_explain_arguments(explain: argparse.ArgumentParser) -> None:
    explain.add_argument(
        "file",
        metavar="FILE",
        help="completions with their prompts: a request to /v1/credit/scar, its items as a list, or one per line; "
        "- reads stdin",
    )
    explain.add_argument("--html", type=Path, metavar="FILE", help="where the page goes (default: stdout)")
    explain.add_argument(
        "--png",
        type=Path,
        metavar="FILE",
        help="where a picture goes; Chromium or Chrome makes it, the one that CREDITD_BROWSER names or one on the path",
    )
    explain.add_argument("--answer", type=Path, metavar="FILE", help="an answer that is there: no service is asked")
    explain.add_argument("--url", help="service to ask (default: CREDITD_URL, else http://127.0.0.1:8400)")
    explain.add_argument("--model", metavar="ID", help="reward model (default: the only one of the service)")
    explain.add_argument("--segmentation", help='name of the segmentation, or JSON such as \'{"type": "lines"}\'')
    explain.add_argument("--max-units", type=_positive_or_none, metavar="N", help="most units, or none for no limit")
    explain.add_argument("--absent", help="what stands in the place of absent units, name or JSON")
    explain.add_argument("--credit", help="which value units get, name or JSON")
    explain.add_argument("--advantage", help="`pooled` for token advantages beside token rewards")
    explain.add_argument("--alpha", type=float, help="part of the reward that units get where they stand, 0 to 1")
    explain.add_argument("--budget", type=_positive, metavar="N", help="texts that may be evaluated per completion")
    explain.add_argument("--seed", type=int, help="of what is sampled")
    explain.add_argument("--timeout-s", type=float, default=300.0, help="seconds for the answer, retries included")
    explain.set_defaults(run=_explain)


def _add_doctor_arguments(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("--url", help="service to ask (default: CREDITD_URL, else http://127.0.0.1:8400)")
    doctor.add_argument("--no-service", action="store_true", help="look at what is installed alone")
    doctor.add_argument(
        "--framework",
        action="append",
        default=[],
        metavar="NAME",
        help="trainer that has to be here, as pip calls it; may be repeated (default: those that are installed)",
    )
    doctor.add_argument(
        "--model", action="append", default=[], metavar="ID", help="model that the run asks; may be repeated"
    )
    doctor.add_argument("--weight-version", metavar="VERSION", help="weights that policies among them have to have")
    doctor.add_argument("--timeout-s", type=float, default=10.0, help="seconds for each answer, retries included")
    doctor.add_argument("--json", action="store_true", help="one JSON array")
    doctor.set_defaults(run=_doctor)


def _add_cache_commands(cache: argparse.ArgumentParser) -> None:
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file of the service's settings; CREDITD_… variables win"
    )
    where.add_argument(
        "--url",
        help="Redis to ask instead of redis_url, as another user: redis://creditd-admin@HOST:6379/0; the password is "
        "in REDISCLI_AUTH, or that of the settings",
    )
    commands = cache.add_subparsers(title="commands", required=True, metavar="COMMAND")

    stats = commands.add_parser(
        "stats",
        parents=[where],
        help="how much is remembered, of which models",
        description="How much is remembered in Redis, of which models, and how Redis fares with it.",
    )
    stats.add_argument("--json", action="store_true", help="one JSON object")
    stats.set_defaults(run=_cache, action="stats")

    inspect = commands.add_parser(
        "inspect",
        parents=[where],
        help="what one key holds",
        description="What one key holds. Exit status: 0 a sound value, 1 none or a damaged one, 2 the key of no game.",
    )
    inspect.add_argument("key", metavar="KEY", help="creditd:1:model:MODEL:DIGEST or creditd:1:caller:DIGEST")
    inspect.add_argument("--json", action="store_true", help="one JSON object")
    inspect.set_defaults(run=_cache, action="inspect")

    purge = commands.add_parser(
        "purge",
        parents=[where],
        help="have the utilities of a model, or of callers, forgotten",
        description="Have all utilities of a model, or all that callers of /v1/credit/shapley/solve supplied, "
        "forgotten, by Redis and by every service that uses it.",
    )
    whose = purge.add_mutually_exclusive_group(required=True)
    whose.add_argument("--model", metavar="ID", help="id of the model, as requests call it")
    whose.add_argument("--callers", action="store_true", help="what callers supplied, under every utility_id")
    purge.set_defaults(run=_cache, action="purge")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, expected a positive number")
    return number


def _positive_or_none(text: str) -> int | str:
    return text if text == "none" else _positive(text)


def _serve(options: argparse.Namespace) -> int:
    try:
        from creditd.cli.serve import run_service  # noqa: PLC0415  # the client's install has no web framework
    except ModuleNotFoundError as error:
        return _without_service("serve", error)
    return run_service(options.config, host=options.host, port=options.port)


def _openapi(_: argparse.Namespace) -> int:
    try:
        from creditd.cli.openapi import document  # noqa: PLC0415  # as for serve
    except ModuleNotFoundError as error:
        return _without_service("openapi", error)
    print(document(), end="")
    return 0


def _cache(options: argparse.Namespace) -> int:
    try:
        from creditd.cli.cache import run  # noqa: PLC0415  # the client's install has no client of Redis
    except ModuleNotFoundError as error:
        return _without_service("cache", error)
    return run(options)


def _without_service(command: str, error: ModuleNotFoundError) -> int:
    """Say what to install where a part of the service is missing."""
    if error.name is not None and error.name.startswith("creditd"):
        raise error
    print(f"creditd {command} needs {error.name}: pip install 'creditd[service]'", file=sys.stderr)
    return 2


def _shapley(options: argparse.Namespace) -> int:
    from creditd.cli.shapley import run_file  # noqa: PLC0415  # `creditd version` should not load NumPy

    return run_file(options)


def _explain(options: argparse.Namespace) -> int:
    from creditd.cli.explain.command import run_file  # noqa: PLC0415  # `creditd version` should not load NumPy

    return run_file(options)


def _replay(options: argparse.Namespace) -> int:
    from creditd.cli.replay import run_files  # noqa: PLC0415  # `creditd version` should not load NumPy

    return run_files(options)


def _doctor(options: argparse.Namespace) -> int:
    from creditd.cli.doctor import run  # noqa: PLC0415  # `creditd version` should not load NumPy

    return run(options)


def _utilities(_: argparse.Namespace) -> int:
    from creditd.cli.utilities import page  # noqa: PLC0415  # `creditd version` should not load NumPy

    print(page(), end="")
    return 0


def _version(_: argparse.Namespace) -> int:
    print(package_version())
    return 0


if __name__ == "__main__":
    sys.exit(main())
