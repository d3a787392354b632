"""OpenRLHF on a processor: the two packages without which its modules cannot be imported, as empty names.

`openrlhf.models` reads flash_attn when it is loaded, and `openrlhf.trainer.ray` vllm. Neither is called in a test, so
both are names of empty modules; the rest is the real package.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

NEEDS_A_GPU = (
    "flash_attn",
    "flash_attn.bert_padding",
    "flash_attn.utils",
    "flash_attn.utils.distributed",
    "vllm",
    "vllm.inputs",
    "vllm.utils",
)
_EMPTY = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
"""


class Unused(ModuleType):
    """A module whose names exist and are never called."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name):
        """Any name that an import statement asks for."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def without_a_gpu() -> Iterator[None]:
    """The names, for as long as modules are imported; what these warn of while they are says nothing of a test."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in NEEDS_A_GPU:
            module = Unused(name)
            module.__spec__ = ModuleSpec(name, None, is_package=True)
            patch.setitem(sys.modules, name, module)
        yield


def write_empty_packages(directory: Path) -> None:
    """The same names as files, for other processes."""
    for name in NEEDS_A_GPU:
        package = directory.joinpath(*name.split("."))
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(_EMPTY)
