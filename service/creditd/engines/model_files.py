"""From the files of a checked directory to a model and a tokenizer in memory, and what can be told of the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.model_spec import ModelSpec

LoadedFiles: TypeAlias = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_files(
    spec: ModelSpec,
    path: Path,
    auto: Any,  # noqa: ANN401 - transformers' classes for loading have no base in common
    *,
    attention: str | None,
    dispensable: tuple[str, ...] = (),
) -> LoadedFiles:
    """Load weights and tokenizer: safetensors, code of transformers alone, local files alone.

    Args:
        spec: The model.
        path: From `checked_path`.
        auto: Which of transformers' auto classes.
        attention: Implementation, as transformers names it. None: the one that it takes for the model.
        dispensable: Beginnings of the names of weights that need not be there, because nobody reads them.

    Returns:
        The model in evaluation mode on its device, and its tokenizer.

    Raises:
        ModelUnsuitableError: If it cannot be loaded, or the files lack weights: those would be random.
    """
    disable_progress_bar()
    try:
        model, info = auto.from_pretrained(
            path,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=attention,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        model = model.to(spec.device).eval()
    except Exception as error:
        # Files can be wrong in as many ways as their libraries have exceptions.
        raise ModelUnsuitableError(f"model {spec.id} cannot be loaded: {type(error).__name__}: {error}") from error
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(dispensable))
    if missing:
        raise ModelUnsuitableError(
            f"model {spec.id}: its files lack {len(missing)} of the weights of a {type(model).__name__}, among them "
            f"{missing[0]}; expected all of them"
        )
    return model, tokenizer


def longest_sequence(spec: ModelSpec, model: PreTrainedModel, *others: int | None) -> int:
    """Most tokens that a model reads at once.

    Args:
        spec: The model as it was registered.
        model: In memory.
        others: Further limits; None where there is none.

    Returns:
        The smallest limit.

    Raises:
        ModelUnsuitableError: If there is none.
    """
    limits = [limit for limit in (spec.max_tokens, positions_of(model), *others) if limit]
    if not limits:
        raise ModelUnsuitableError(f"model {spec.id}: its config has no number of positions; expected max_tokens")
    return min(limits)


def positions_of(model: PreTrainedModel) -> int | None:
    """How many tokens have positions; None where the configuration does not say.

    Models of the family of RoBERTa count positions from behind that of padding, and have as many fewer.
    """
    declared: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    return declared


def bytes_of(model: PreTrainedModel) -> int:
    """Memory of the weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
