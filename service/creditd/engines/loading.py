"""From a directory that `save_pretrained` wrote to a model that can be asked; what is unsuitable is said at boot.

Weights are safetensors, code is transformers' own, files are local and inside one root.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, PreTrainedModel

from creditd.engines.chat import ChatText
from creditd.engines.directories import checked_path, read_json
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.model_files import bytes_of, load_files, longest_sequence
from creditd.engines.model_spec import ModelSpec
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, is_causal
from creditd.engines.self_check import SelfCheck, check_tries


@dataclass(frozen=True)
class LoadedReward:
    """A reward model in memory.

    Attributes:
        spec: As it was registered.
        model: In evaluation mode, on its device.
        text: How prompts and completions become its tokens.
        scorer: How it is asked.
        check: What came out of the check of tries; None for a bidirectional model, which reads none.
        max_tokens: Longest sequence.
        n_bytes: Memory of its weights.
    """

    spec: ModelSpec
    model: PreTrainedModel
    text: ChatText
    scorer: TrieScorer | LengthScorer
    check: SelfCheck | None
    max_tokens: int
    n_bytes: int

    @property
    def reads_tries(self) -> bool:
        """Whether distinct prefixes are computed once."""
        return isinstance(self.scorer, TrieScorer)


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
    architectures = read_json(spec, path / "config.json", dict).get("architectures") or []
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        raise ModelUnsuitableError(
            f"model {spec.id}: got the architecture {', '.join(map(str, architectures)) or 'none'}; a reward model is "
            "one for sequence classification"
        )
    model, tokenizer = load_files(spec, path, AutoModelForSequenceClassification, attention=spec.attention)
    return _served(spec, model, tokenizer)


def _served(spec: ModelSpec, model: PreTrainedModel, tokenizer: Any) -> LoadedReward:  # noqa: ANN401 - transformers' own
    try:
        text = ChatText(tokenizer, spec.chat_template)
        causal = is_causal(model)
        check = check_tries(model) if causal else None
        scorer: TrieScorer | LengthScorer
        if check is not None and check.passed:
            scorer = TrieScorer(model, spec.head, most_nodes=spec.batch_tokens)
        else:
            pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            scorer = LengthScorer(model, spec.head, most_tokens=spec.batch_tokens, pad_id=pad_id)
    except ModelUnsuitableError as error:
        raise ModelUnsuitableError(f"model {spec.id}: {error}") from error
    longest = longest_sequence(spec, model)
    return LoadedReward(spec, model, text, scorer, check, longest, bytes_of(model))
