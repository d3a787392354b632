"""Adapters of low rank by the peft library, put on a policy and taken off again; the weights below them stay exact.

Reference: arXiv:2106.09685v2 (LoRA), y = W·x + (α/r)·B·A·x; merged, W + (α/r)·B·A.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from creditd.engines.errors import WeightsRefusedError
from creditd.engines.safetensors_header import shown

_NAME = "creditd"
_PREFIX = "base_model.model."
"""What peft has before the names of a model that it has wrapped."""
_TAKEN = frozenset(
    {
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "r",
        "rank_pattern",
        "target_modules",
        "use_dora",
        "use_rslora",
    }
)
"""What of a configuration decides what the adapter computes."""
_IGNORED = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "init_lora_weights",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""What is for training or for finding the model, and changes nothing here."""
_BEGINNINGS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin training that leave the weights below the adapter as they were."""
_SELECTING = ("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform")
"""What of a configuration says which layers have an adapter."""
_NAME_OF_LAYERS = re.compile(r"\^?[A-Za-z0-9_.-]+")
"""What peft may take for a regular expression: a name, in which no expression is. Others take as long as they like, and
nothing else runs meanwhile."""


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory.

    Attributes:
        config: Its configuration, as `checked_config` returns it.
        tensors: By the names that peft saves them under, without what it has before them; on the processor.
        merged: Whether it is added to the weights.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    merged: bool


def own_name(name: str) -> str:
    """The name of a tensor of an adapter without what peft has before it."""
    return name.removeprefix(_PREFIX)


def layer_of(name: str) -> str:
    """The layer that a tensor of an adapter, called as `own_name` has it, belongs to; empty for any other tensor."""
    return name.rpartition(".lora_")[0]


def checked_config(config: Mapping[str, Any], layers: Iterable[str] = ()) -> dict[str, Any]:
    """What of an adapter's configuration is taken.

    Args:
        config: The object of `adapter_config.json`.
        layers: Layers of the policy that it has tensors for. Where a regular expression selects layers, it is these;
            the expression is never run.

    Raises:
        WeightsRefusedError: If it is of another kind of adapter, or asks for something that is not done here.
    """
    if config.get("peft_type") != "LORA":
        raise WeightsRefusedError("got an adapter of another peft_type; expected LORA")
    if config.get("bias", "none") != "none":
        raise WeightsRefusedError("got an adapter with biases of the model; expected bias none")
    if config.get("init_lora_weights", True) not in _BEGINNINGS:
        raise WeightsRefusedError(
            "got an adapter whose init_lora_weights changes the weights below it; expected true, false, gaussian, "
            "orthogonal or eva"
        )
    for key, value in config.items():
        if key not in _TAKEN | _IGNORED and value not in (None, False, {}, [], ""):
            raise WeightsRefusedError(f"got an adapter with {shown(key)}, which is not served; expected one without it")
    taken = {key: config[key] for key in sorted(_TAKEN & set(config)) if config[key] is not None}
    _demand_plain(taken)
    if not _selects_by_name(taken):
        taken = {key: value for key, value in taken.items() if key not in _SELECTING}
        taken["target_modules"] = sorted(layers)
    return taken


def _demand_plain(taken: Mapping[str, Any]) -> None:
    """Refuse patterns for ranks that are more than names."""
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = taken.get(key, {})
        if not isinstance(patterns, Mapping) or not all(map(_NAME_OF_LAYERS.fullmatch, patterns)):
            raise WeightsRefusedError(f"got a {key} with regular expressions; expected names of layers, each by itself")


def _selects_by_name(taken: Mapping[str, Any]) -> bool:
    """Whether layers are selected without a regular expression; in lists of layers there are names alone."""
    patterns = [taken.get("target_modules"), taken.get("exclude_modules")]
    layers = taken.get("layers_pattern")
    patterns += layers if isinstance(layers, list) else [layers]
    return all(_NAME_OF_LAYERS.fullmatch(one) for one in patterns if isinstance(one, str))


class LowRankAdapters:
    """The adapters of one model; all but `shapes` is for the thread of the engine alone."""

    def __init__(self, model: nn.Module) -> None:
        """Begin without any.

        Args:
            model: The policy.
        """
        self._model = model
        self._mounted: Adapter | None = None
        self._below: list[tuple[nn.Parameter, torch.Tensor]] = []

    def shapes(self, config: Mapping[str, Any], *, merged: bool) -> dict[str, tuple[int, ...]]:
        """The tensors of an adapter with this configuration, by the names that `Adapter` has for them.

        Args:
            config: From `checked_config`.
            merged: Whether it is to be merged.

        Raises:
            WeightsRefusedError: If peft is not installed, does not know what to do with the configuration and the
                model, or would merge into weights that stand in two places.

        Cost:
            A copy of the model without memory for its weights; may be called from any thread.
        """
        if not isinstance(self._model, PreTrainedModel):
            raise WeightsRefusedError("this policy takes no adapters; expected the weights of the whole model")
        with torch.device("meta"):
            skeleton = type(self._model)(copy.deepcopy(self._model.config))
        _inject(skeleton, config)
        layers = _layers(skeleton)
        if not layers:
            raise WeightsRefusedError("the adapter fits no layer of the policy; expected its target_modules there")
        if merged:
            _demand_untied(skeleton, [layer for _, _, layer in layers])
        return {own_name(name): tuple(tensor.shape) for name, tensor in _saved(skeleton).items()}

    def mount(self, adapter: Adapter) -> None:
        """Put an adapter on the model in the place of the one that is there.

        Raises:
            WeightsRefusedError: If it cannot be merged: values are not finite. What was there before is there again.

        Cost:
            Its own size; merged, a copy of the weights below it as well, on the processor.
        """
        before = self._mounted
        self.unmount()
        try:
            self._mount(adapter)
        except (ValueError, WeightsRefusedError) as error:
            self._return_to(before)
            if isinstance(error, WeightsRefusedError):
                raise
            raise WeightsRefusedError("the adapter cannot be merged; expected weights that stay finite") from error

    def unmount(self, *, restored: bool = True) -> None:
        """Take the adapter off.

        Args:
            restored: Whether weights that it was merged into become what they were; not needed where all are replaced.
        """
        for parent, name, layer in _layers(self._model):
            setattr(parent, name, layer.get_base_layer())
        if hasattr(self._model, "peft_config"):
            del self._model.peft_config
        with torch.no_grad():
            for parameter, weights in self._below if restored else []:
                parameter.copy_(weights)
        self._below = []
        self._mounted = None

    def _return_to(self, before: Adapter | None) -> None:
        """Put back what was there, whatever of another adapter is."""
        try:
            self.unmount()
            if before is not None:
                self._mount(before)
        except Exception as error:
            # Not an error of the engine's own: those say that nothing was changed.
            raise RuntimeError("the adapter that was there could not be put back") from error

    def _mount(self, adapter: Adapter) -> None:
        _inject(self._model, adapter.config)
        self._mounted = adapter
        layers = _layers(self._model)
        _fill(self._model, adapter.tensors)
        if not adapter.merged:
            return
        for _, _, layer in layers:
            weight = layer.get_base_layer().weight
            # Of a copy elsewhere nothing is left to be rounded, however often adapters come and go.
            self._below.append((weight, weight.detach().to("cpu", copy=True)))
        with torch.no_grad():
            for parent, name, layer in layers:
                weight = layer.get_base_layer().weight
                place = weight.data
                layer.merge(safe_merge=True)
                merged, weight.data = weight.data, place
                weight.copy_(merged)
                setattr(parent, name, layer.get_base_layer())
        del self._model.peft_config


def _inject(model: PreTrainedModel | nn.Module, config: Mapping[str, Any]) -> None:
    """Put empty layers of an adapter around those of a model."""
    try:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - needed by adapters alone
    except ImportError as error:
        raise WeightsRefusedError(
            "got an adapter, and peft is not installed beside the service; expected it, as creditd[models] brings it"
        ) from error
    try:
        # Beginnings of training are not computed: some of them change the weights below.
        made = LoraConfig(**config, lora_dropout=0.0, init_lora_weights=False, inference_mode=True)
        inject_adapter_in_model(made, model, _NAME, low_cpu_mem_usage=_is_meta(model))
    except Exception as error:
        # peft's own errors hold names of the configuration, and are of many kinds.
        raise WeightsRefusedError(
            f"peft cannot put this adapter on the policy ({type(error).__name__}); expected one that was trained on it"
        ) from error
    for module in (layer for _, _, layer in _layers(model)):
        module.eval().requires_grad_(requires_grad=False)


def _layers(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """The layers of an adapter in a model, each with what it is in and its name there; none where there is none."""
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 - needed by adapters alone

    return [
        (parent, name, child)
        for parent in list(model.modules())
        if not isinstance(parent, BaseTunerLayer)
        for name, child in parent.named_children()
        if isinstance(child, BaseTunerLayer)
    ]


def _saved(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of the adapter in a model, by the names that peft saves them under."""
    from peft.utils import get_peft_model_state_dict  # noqa: PLC0415 - needed by adapters alone

    found: dict[str, torch.Tensor] = get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False)
    return found


def _fill(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give the adapter in a model its numbers, which stay float32 where the model's are shorter."""
    for _, _, layer in _layers(model):
        for name, parameter in layer.named_parameters():
            if not name.startswith("base_layer."):
                parameter.data = parameter.data.float() if parameter.element_size() < 4 else parameter.data
    places = {own_name(name): place for name, place in _saved(model).items()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            places[name].copy_(tensor)


def _demand_untied(model: nn.Module, layers: list[Any]) -> None:
    """Refuse to merge into weights that stand in a second place as well, where nothing is to be added."""
    names: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    if any(names.get(id(layer.get_base_layer().weight), 1) > 1 for layer in layers):
        raise WeightsRefusedError("got an adapter on tied weights, to be merged; expected it unmerged")


def _is_meta(model: nn.Module) -> bool:
    return str(next(model.parameters()).device) == "meta"
