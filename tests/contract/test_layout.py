import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOTS = ("client", "service", "trainer_adapters")
PORTIONS = {
    "client": {"wire", "client"},
    "service": {"cli", "server", "scoring", "engines", "cache", "credit"},
    "trainer_adapters": {"adapters"},
}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
MAX_ROUTE_LINES = 15


def modules():
    """Every module of the three source roots."""
    return sorted(path for root in ROOTS for path in (ROOT / root / "creditd").rglob("*.py"))


def in_a_bare_process(code):
    """Run code in a new interpreter that sees the three roots; what it prints."""
    paths = [str(ROOT / root) for root in ROOTS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_namespace_has_no_init():
    """`creditd` is a PEP 420 namespace: no root has an `__init__.py` or a module of its own in it."""
    for root in ROOTS:
        folder = ROOT / root / "creditd"
        assert folder.is_dir()
        assert [path.name for path in folder.iterdir() if path.is_file()] == []
        assert not list((ROOT / root).glob("*.py"))


@pytest.mark.parametrize("root", ROOTS)
def test_every_portion_is_a_typed_package(root):
    """Each portion has an `__init__.py` and a `py.typed`, and each folder below it an `__init__.py`."""
    portions = {path.name for path in (ROOT / root / "creditd").iterdir() if path.name != "__pycache__"}
    assert portions >= PORTIONS[root]
    for name in portions:
        folder = ROOT / root / "creditd" / name
        assert (folder / "py.typed").is_file()
        for inner in {folder, *(path.parent for path in folder.rglob("*.py"))}:
            assert (inner / "__init__.py").is_file()


def test_no_portion_is_in_two_roots():
    """A portion lives in one root: two would shadow each other."""
    names = [path.name for root in ROOTS for path in (ROOT / root / "creditd").iterdir() if path.name != "__pycache__"]
    assert len(names) == len(set(names))


def test_no_module_has_a_name_that_says_nothing():
    """There are no modules called utils, helpers, common or manager."""
    for path in modules():
        parts = {*path.relative_to(ROOT).with_suffix("").parts}
        words = {word for part in parts for word in part.split("_")}
        assert not words & BANNED_NAMES, path


def routes():
    """The functions of the service that answer a path."""
    for path in sorted((ROOT / "service/creditd/server/routes").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            decorators = getattr(node, "decorator_list", [])
            if any(isinstance(one, ast.Call) and ast.unparse(one.func).startswith("router.") for one in decorators):
                yield node


@pytest.mark.parametrize("route", [pytest.param(node, id=node.name) for node in routes()])
def test_a_route_is_short(route):
    """A route parses, calls and converts in at most fifteen lines, its signature and docstring not counted."""
    first = route.body[1] if ast.get_docstring(route) else route.body[0]
    assert route.end_lineno - first.lineno + 1 <= MAX_ROUTE_LINES


def test_all_routes_were_found():
    """The walk above sees every route there is."""
    assert {route.name for route in routes()} == {
        "credit_shapley", "credit_shapley_solve", "credit_group", "credit_scar", "credit_scar_solve", "credit_oar",
        "credit_compose", "info", "models", "utilities", "livez", "readyz", "metrics", "first_page", "openapi",
        "replace_weights", "get_reward", "get_reward_of_model", "classify",
    }  # fmt: skip


def test_the_client_loads_nothing_heavy():
    """Importing the client loads no model, no web framework and no store."""
    heavy = "torch fastapi starlette uvicorn redis transformers prometheus_client pydantic_settings orjson"
    loaded = in_a_bare_process(
        "import sys\n"
        "from creditd.client import AsyncClient, Client\n"
        f"print([name for name in {heavy.split()} if name in sys.modules])"
    )
    assert loaded == "[]"


def test_the_client_loads_no_part_of_the_service_but_the_arithmetic():
    """Of the service's root the client may load `creditd.credit`, and nothing else."""
    loaded = in_a_bare_process(
        "import sys\n"
        "import creditd.client, creditd.wire.v1, creditd.wire.columns\n"
        "print(sorted({'.'.join(n.split('.')[:2]) for n in sys.modules if n.startswith('creditd.')}))"
    )
    assert set(ast.literal_eval(loaded)) <= {"creditd.client", "creditd.wire", "creditd.credit"}


BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is not installed here")
sys.meta_path.insert(0, Blocker())
"""


def blocked(*names):
    """Code that makes packages impossible to import."""
    return BLOCKER.format(blocked=set(names))


def importable(folder):
    """The modules of a portion by their import names."""
    root = folder.parents[1]
    parts = [path.relative_to(root).with_suffix("").parts for path in sorted(folder.rglob("*.py"))]
    return [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]


WITHOUT_TORCH = {
    "creditd.engines",
    *(
        f"creditd.engines.{name}"
        for name in (
            "batching",
            "delivery",
            "directories",
            "errors",
            "fake",
            "local_engine",
            "model_spec",
            "protocol",
            "registry",
            "remote_retry",
            "remote_texts",
            "remote_wire",
            "sentence_files",
            "trie",
        )
    ),
}
"""What of the engines has to be there to register a model, to queue work, and to lay it out."""
ABOVE_ENGINES = ("pydantic", "pydantic_core", "fastapi", "starlette", "redis", "httpx", "orjson", "prometheus_client")


def test_engines_that_need_no_torch_need_numpy_alone():
    """Registration, queue and layout import where there is neither a model nor anything of the service."""
    names = importable(ROOT / "service/creditd/engines")
    assert set(names) > WITHOUT_TORCH
    in_a_bare_process(
        blocked(*ABOVE_ENGINES, "torch", "transformers") + "".join(f"import {name}\n" for name in sorted(WITHOUT_TORCH))
    )


def test_the_remote_engine_needs_an_http_client_and_no_torch():
    """One module speaks HTTP, so that everything else of the engines imports where there is no httpx."""
    folder = ROOT / "service/creditd/engines"
    assert [path.stem for path in folder.glob("*.py") if "httpx" in path.read_text(encoding="utf-8")] == [
        "remote_calls"
    ]
    above = [name for name in ABOVE_ENGINES if name != "httpx"]
    in_a_bare_process(blocked(*above, "torch", "transformers") + "import creditd.engines.remote\n")


WITHOUT_REDIS = {"creditd.cache", *(f"creditd.cache.{name}" for name in ("games", "keys", "memory", "tiers"))}
"""What of the cache remembers in memory alone."""


def test_the_cache_in_memory_needs_numpy_alone():
    """Keys, games, memory and tiers import where there is no client of Redis, no schema, framework or model."""
    assert set(importable(ROOT / "service/creditd/cache")) > WITHOUT_REDIS
    in_a_bare_process(
        blocked(*ABOVE_ENGINES, "torch", "transformers") + "".join(f"import {name}\n" for name in sorted(WITHOUT_REDIS))
    )


def test_the_cache_needs_nothing_of_the_service_but_the_client_of_redis():
    """All of its modules import where there is no schema, no framework and no model."""
    above = [name for name in ABOVE_ENGINES if name != "redis"]
    names = importable(ROOT / "service/creditd/cache")
    in_a_bare_process(blocked(*above, "torch", "transformers") + "".join(f"import {name}\n" for name in names))


@pytest.mark.models
def test_engines_need_nothing_of_the_service():
    """All of them import inside a trainer, or on a bare machine with a GPU, beside torch and transformers."""
    pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
    names = importable(ROOT / "service/creditd/engines")
    # transformers itself uses an HTTP client where there is one, and so does the remote engine.
    above = [name for name in ABOVE_ENGINES if name != "httpx"]
    in_a_bare_process(blocked(*above) + "".join(f"import {name}\n" for name in names))


@pytest.mark.parametrize("portion", ["credit", "scoring"])
def test_the_arithmetic_needs_numpy_alone(portion):
    """Every module of `credit` and `scoring` imports where there is no schema, framework, store, model or client."""
    names = importable(ROOT / "service/creditd" / portion)
    assert len(names) > 2
    heavy = ("pydantic", "pydantic_core", "fastapi", "starlette", "redis", "torch", "transformers", "httpx", "anyio",
             "orjson", "uvicorn", "prometheus_client")  # fmt: skip
    in_a_bare_process(blocked(*heavy) + "".join(f"import {name}\n" for name in names))


def test_the_blocker_blocks():
    """The service does need what is blocked above, so the block is real."""
    code = "try:\n    import creditd.server.app\nexcept ImportError as error:\n    print(error)\n"
    assert in_a_bare_process(blocked("fastapi") + code) == "fastapi is not installed here"


def test_the_wire_and_the_client_need_the_base_install_alone():
    """The wire and the client import with the base install, and without what the service needs."""
    names = [*importable(ROOT / "client/creditd/wire"), *importable(ROOT / "client/creditd/client")]
    heavy = ("fastapi", "starlette", "redis", "torch", "transformers", "orjson", "uvicorn", "uvloop", "httptools",
             "prometheus_client", "pydantic_settings")  # fmt: skip
    in_a_bare_process(blocked(*heavy) + "".join(f"import {name}\n" for name in names))


def test_the_command_explains_itself_without_the_service():
    """`creditd --help` needs the base install alone."""
    in_a_bare_process(
        blocked("fastapi", "starlette", "uvicorn", "orjson", "prometheus_client", "pydantic_settings")
        + "from creditd.cli.__main__ import main\n"
        + "try:\n    code = main(['--help'])\nexcept SystemExit as end:\n    code = end.code\nassert not code\n"
    )
