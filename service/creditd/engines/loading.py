"""From a directory that `save_pretrained` wrote to a model that can be asked; what is unsuitable is said at boot.

Weights are safetensors, code is transformers' own, files are local and inside one root.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from creditd.engines.chat import ChatText
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.memory import Reading
from creditd.engines.model_spec import ModelSpec
from creditd.engines.reading import FLEX_ATTENTION, choose_reader
from creditd.engines.reward_scorers import LengthScorer, TrieScorer
from creditd.engines.self_check import SelfCheck

_WEIGHTS = "*.safetensors"
_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class LoadedReward:
    """A reward model in memory.

    Attributes:
        spec: As it was registered.
        model: In evaluation mode, on its device.
        text: How prompts and completions become its tokens.
        scorer: What is asked.
        reading: How it is asked.
        check: What came out of the last check of tries; None for a bidirectional model, which reads none.
        max_tokens: Longest sequence.
        n_bytes: Memory of its weights.
        forward_bytes: Most memory of one forward pass beside the weights.
    """

    spec: ModelSpec
    model: PreTrainedModel
    text: ChatText
    scorer: TrieScorer | LengthScorer
    reading: Reading
    check: SelfCheck | None
    max_tokens: int
    n_bytes: int
    forward_bytes: int

    @property
    def reads_tries(self) -> bool:
        """Whether distinct prefixes are computed once."""
        return self.reading != "batches"


def checked_path(spec: ModelSpec, root: Path) -> Path:
    """The directory of a model, looked at before anything in it is opened.

    Args:
        spec: The model.
        root: Directory that all models are in.

    Returns:
        The resolved path.

    Raises:
        ModelUnsuitableError: If it is outside the root, no directory, has no configuration or no safetensors, or asks
            for code of its own.
    """
    path, inside = (root / spec.path).resolve(), root.resolve()
    if not path.is_relative_to(inside):
        raise ModelUnsuitableError(f"model {spec.id}: its path is outside the directory for models")
    if not path.is_dir():
        raise ModelUnsuitableError(f"model {spec.id}: there is no directory {spec.path} among the models")
    for file in path.iterdir():
        if not file.resolve().is_relative_to(inside):
            raise ModelUnsuitableError(f"model {spec.id}: {file.name} leads outside the directory for models")
    if not (path / "config.json").is_file():
        raise ModelUnsuitableError(
            f"model {spec.id}: {spec.path} has no config.json; expected what save_pretrained wrote"
        )
    if not any(path.glob(_WEIGHTS)):
        unsafe = sorted(file.name for pattern in _UNSAFE for file in path.glob(pattern))
        found = f"got {unsafe[0]}, which can run code; " if unsafe else ""
        raise ModelUnsuitableError(
            f"model {spec.id}: {found}expected weights as safetensors (save_pretrained writes them)"
        )
    config = _json_of(spec, path / "config.json")
    if "auto_map" in config:
        raise ModelUnsuitableError(f"model {spec.id}: its config asks for code of its own (auto_map), which is not run")
    return path


def load_reward(spec: ModelSpec, root: Path) -> LoadedReward:
    """Load a reward model, check it, and choose how it is asked.

    Args:
        spec: The model.
        root: Directory that all models are in.

    Returns:
        A model that answers.

    Raises:
        ModelUnsuitableError: If it cannot serve; the message says what is wrong and what is expected.

    Cost:
        Reading the weights, and some two thousand tokens.
    """
    path = checked_path(spec, root)
    architectures = _json_of(spec, path / "config.json").get("architectures") or []
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        raise ModelUnsuitableError(
            f"model {spec.id}: got the architecture {', '.join(map(str, architectures)) or 'none'}; a reward model is "
            "one for sequence classification"
        )
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=getattr(torch, spec.dtype),
            # Attention by blocks is made here, for tries alone.
            attn_implementation=None if spec.attention == FLEX_ATTENTION else spec.attention,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        model = model.to(spec.device).eval()
    except Exception as error:
        # Files can be wrong in as many ways as their libraries have exceptions.
        raise ModelUnsuitableError(f"model {spec.id} cannot be loaded: {type(error).__name__}: {error}") from error
    return _served(spec, model, tokenizer)


def _served(spec: ModelSpec, model: PreTrainedModel, tokenizer: Any) -> LoadedReward:  # noqa: ANN401 - transformers' own
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [limit for limit in (spec.max_tokens, positions) if limit]
    if not limits:
        raise ModelUnsuitableError(f"model {spec.id}: its config has no number of positions; expected max_tokens")
    try:
        text = ChatText(tokenizer, spec.chat_template)
        reader = choose_reader(spec, model, longest=min(limits), pad_id=tokenizer.pad_token_id or 0)
    except ModelUnsuitableError as error:
        raise ModelUnsuitableError(f"model {spec.id}: {error}") from error
    return LoadedReward(
        spec=spec,
        model=model,
        text=text,
        scorer=reader.scorer,
        reading=reader.reading,
        check=reader.check,
        max_tokens=min(limits),
        n_bytes=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        forward_bytes=reader.forward_bytes,
    )


def _json_of(spec: ModelSpec, file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnsuitableError(f"model {spec.id}: {file.name} cannot be read: {error}") from error
    return found
