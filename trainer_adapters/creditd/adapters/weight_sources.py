"""The weights of a model that is being trained, however its processes share them: names, shapes, and whole tensors.

Under FSDP and ZeRO no process has a whole tensor; all of them come together to make one, in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import nn

_WRAPPERS = re.compile(r"(^|\.)(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)(?=\.|$)")
"""What FSDP, torch.compile and activation checkpointing put into names."""
_WRAPPED = frozenset({"module", "_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"})
"""What a wrapper calls the one module within it."""
_PART = re.compile(r"(?P<layer>.+)\.(?P<part>lora_\w+)\.(?P<adapter>[^.]+)(?P<rest>(?:\.(?:weight|bias))?)")
"""A tensor of an adapter: its layer, what it is there, the name of the adapter, which PEFT leaves out of files."""
_MAGNITUDE = "lora_magnitude_vector"
"""Of DoRA; PEFT saves it as if it were no layer of its own."""
_NAME_OF_LAYERS = re.compile(r"\^?[A-Za-z0-9_.-]+")
"""A pattern that is a name; a service runs no other."""
_PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}
"""What a configuration says of some layers, and where a layer of PEFT has it."""
_ABOVE = "base_model.model."
"""What PEFT has before the names of the model that it has wrapped."""
_FLAT = "_flat_param"
"""How FSDP calls what it has made of the parameters of a unit."""


@dataclass(frozen=True)
class SharedTensor:
    """A tensor of a model, wherever its parts are.

    Attributes:
        name: As `state_dict` of the model has it that nobody has wrapped.
        shape: Of the whole tensor.
        dtype: Of its numbers.
        held: The parameter or buffer, or a part of it; None within a unit of FSDP, which makes it when it is opened.
        unit: Of FSDP, as `FullyShardedDataParallel` makes them; None for everything else.
        inner: Its name within the unit.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    held: torch.Tensor | None = field(default=None, repr=False, compare=False)
    unit: Any = field(default=None, repr=False, compare=False)
    inner: str = ""

    @property
    def n_bytes(self) -> int:
        """Of the whole tensor, as it is in the model."""
        return self.numel * int(self.dtype.itemsize)

    @property
    def numel(self) -> int:
        """Numbers of the whole tensor."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def own_name(name: str) -> str:
    """The name of a parameter in the model that nobody has wrapped."""
    while (found := _WRAPPERS.sub("", name)) != name:
        name = found
    return name.removeprefix(".")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within a wrapper that has its own names, as DistributedDataParallel has."""
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    return model


def tensors_of(model: nn.Module) -> list[SharedTensor]:
    """All parameters and the buffers that are saved, in one order in every process.

    Args:
        model: As it is being trained.

    Returns:
        One entry for each tensor, under the first of its names if it is tied; nothing is gathered.
    """
    model = unwrapped(model)
    found = list(_of_units(model))
    seen = {entry.name for entry in found}
    ids: set[int] = set()
    for name, tensor in [*model.named_parameters(), *_saved_buffers(model)]:
        own = own_name(name)
        if own in seen or own.rpartition(".")[2] == _FLAT or id(tensor) in ids:
            continue
        ids.add(id(tensor))
        shape = tuple(getattr(tensor, "ds_shape", tensor.shape))
        found.append(SharedTensor(own, shape, tensor.dtype, tensor))
    return found


def whole(entries: Sequence[SharedTensor], *, keep: bool, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Whole tensors on the processor; every process comes here with the same entries.

    A copy that fails, for lack of memory say, is raised once the others have their parts: who stopped half-way would
    leave them waiting.

    Args:
        entries: Which ones, in one order.
        keep: Whether this process wants them; the others only give their parts.
        dtype: What numbers with a fraction are cast to; None: they stay.

    Returns:
        By name; none unless `keep`.

    Raises:
        Exception: What a copy raised.

    Cost:
        Beside what is returned, one tensor at a time; of FSDP's first kind one unit.
    """
    kept: dict[str, torch.Tensor] = {}
    failure: Exception | None = None
    with torch.no_grad():
        for _, group in groupby(entries, key=lambda entry: id(entry.unit)):
            for name, tensor in _gathered(list(group)):
                if not keep or failure is not None:
                    continue
                try:
                    kept[name] = _on_processor(tensor, dtype)
                except Exception as error:  # noqa: BLE001 - raised below
                    failure = error
    if failure is not None:
        raise failure
    return kept


def _on_processor(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A copy that nothing of the model shares memory with."""
    cast = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", cast, copy=True, memory_format=torch.contiguous_format)


def _gathered(entries: list[SharedTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole tensors, one after another; each is there until the next is asked for."""
    unit = entries[0].unit
    if unit is None:
        for entry in entries:
            if entry.held is None:
                raise RuntimeError(f"nobody holds {entry.name}")
            with _made_whole(entry.held):
                yield entry.name, entry.held.full_tensor() if hasattr(entry.held, "full_tensor") else entry.held
        return
    from torch.distributed.fsdp import FullyShardedDataParallel  # noqa: PLC0415 - where it is used

    with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False, rank0_only=False):
        inside = {own_name(name): parameter for name, parameter in unit.module.named_parameters()}
        for entry in entries:
            yield entry.name, inside[entry.inner]


def _made_whole(held: torch.Tensor) -> AbstractContextManager[Any]:
    """ZeRO's own way to bring the parts of a parameter together."""
    if not hasattr(held, "ds_id"):
        return nullcontext()
    import deepspeed  # noqa: PLC0415 - whoever has such a parameter has it

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([held])
    return context


def _of_units(model: nn.Module) -> Iterator[SharedTensor]:
    """The tensors that `FullyShardedDataParallel` has taken, unit by unit."""
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FullyShardedDataParallel  # noqa: PLC0415 - where torch has it

    for path, module in model.named_modules():
        if not isinstance(module, FullyShardedDataParallel):
            continue
        handle = module._handle  # noqa: SLF001 - whole shapes are nowhere else
        if handle is None:  # it has no parameters of its own
            continue
        flat = handle.flat_param
        for inner, shape in zip(flat._fqns, flat._shapes, strict=True):  # noqa: SLF001 - as above
            prefix = own_name(path)
            own = own_name(f"{prefix}.{inner}" if prefix else inner)
            yield SharedTensor(own, tuple(shape), flat.dtype, unit=module, inner=own_name(inner))


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers that `state_dict` has."""
    for path, module in model.named_modules():
        transient = module._non_persistent_buffers_set  # noqa: SLF001 - nothing else tells them apart
        for name, buffer in module.named_buffers(recurse=False):
            if name not in transient:
                yield f"{path}.{name}" if path else name, buffer


def adapter_of(
    model: nn.Module, entries: Sequence[SharedTensor]
) -> tuple[list[SharedTensor], Mapping[str, Any]] | None:
    """The adapter of a model that PEFT has wrapped; None for any other model.

    Args:
        model: As it is being trained.
        entries: From `tensors_of`.

    Returns:
        Its tensors under the names that PEFT saves them by, and its configuration as PEFT saves it; in the place of
        regular expressions in `rank_pattern` and `alpha_pattern` with all layers by name, which a service takes.

    Raises:
        ValueError: If several adapters are active, or one of another type than LoRA.
    """
    model = _within_wrappers(model)
    if not (hasattr(model, "peft_config") and hasattr(model, "get_base_model")):
        return None
    names: list[str] = list(model.active_adapters)
    if len(names) != 1:
        raise ValueError(f"got {len(names)} active adapters; expected one, which the policy of the service gets")
    config = _plain(model.peft_config[names[0]].to_dict())
    if config.get("peft_type") != "LORA":
        raise ValueError(f"got an adapter of type {config.get('peft_type')}; expected LORA")
    found = []
    for entry in entries:
        match = _PART.fullmatch(entry.name)
        if match is not None and match["adapter"] == names[0]:
            rest = "" if match["part"] == _MAGNITUDE else match["rest"]
            saved = f"{match['layer']}.{match['part']}{rest}"
            found.append(SharedTensor(saved, entry.shape, entry.dtype, entry.held, entry.unit, entry.inner))
    return found, config | _named_patterns(model, config, names[0])


def _named_patterns(model: nn.Module, config: Mapping[str, Any], adapter: str) -> dict[str, dict[str, Any]]:
    """What regular expressions of a configuration say, layer by layer."""
    named = {}
    for key, attribute in _PATTERNS.items():
        if not all(map(_NAME_OF_LAYERS.fullmatch, config.get(key) or {})):
            of_layers = ((own_name(path), getattr(layer, attribute, None)) for path, layer in model.named_modules())
            named[key] = {
                path.removeprefix(_ABOVE): values[adapter]
                for path, values in of_layers
                if isinstance(values, Mapping) and adapter in values
            }
    return named


def _within_wrappers(model: nn.Module) -> nn.Module:
    """The model that somebody has wrapped as a whole, for training."""
    while True:
        children: dict[str, nn.Module] = dict(model.named_children())
        if len(children) != 1 or not set(children) <= _WRAPPED:
            return model
        (model,) = children.values()


def _plain(value: Any) -> Any:  # noqa: ANN401 - any part of a configuration
    """A part of a configuration as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value))
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.value if hasattr(value, "value") else value
