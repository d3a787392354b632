"""From a directory of a causal language model to a policy that can be measured; what is unsuitable is said at boot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from creditd.engines.answer_heads import Float32Weights, PolicyHead, policy_head
from creditd.engines.chat import hash_of_tokenizer
from creditd.engines.directories import checked_path, read_json, weight_files
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.fingerprints import SourceFiles
from creditd.engines.gradient import Gradients, gradient_tokens, gradients
from creditd.engines.memory import ForwardShape, demand_room
from creditd.engines.model_files import bytes_of, load_files, longest_sequence
from creditd.engines.model_spec import ModelSpec
from creditd.engines.numerics import numerics_of
from creditd.engines.perturbation import READ_AGAIN, perturbation_tokens, perturbed
from creditd.engines.policy_check import PolicyCheck, check_beginnings
from creditd.engines.policy_memory import clean_rows, gradient_bytes, perturbation_bytes
from creditd.engines.policy_passes import Ask, Passes
from creditd.engines.policy_protocol import ReasonedTokens, SensitivityOptions
from creditd.engines.policy_work import item_batches
from creditd.engines.reward_scorers import length_turn

Floats: TypeAlias = NDArray[np.float64]

log = logging.getLogger("creditd.engines")

PASS_ON_A_PROCESSOR = 1024
"""Tokens of a pass on a processor: more of them leave its caches, fewer leave its cores without work."""


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy in memory: a `policy_work.Measurer`.

    Attributes:
        spec: As it was registered.
        model: In evaluation mode, on its device; no weight has a gradient.
        tokenizer: Its own.
        head: From its states to logits.
        check: What came out of the check of beginnings.
        shares: Whether rows go on from keys and values of their beginnings.
        most_tokens: Tokens of one pass.
        max_tokens: Longest sequence.
        n_bytes: Memory of its weights.
        forward_bytes: Most memory of measuring beside the weights.
        n_embeddings: Tokens that it knows.
        fingerprint: Digest of the files that it was loaded from.
        numerics: What decides the last bits of its numbers.
    """

    spec: ModelSpec
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: PolicyHead
    check: PolicyCheck
    shares: bool
    most_tokens: int
    max_tokens: int
    n_bytes: int
    forward_bytes: int
    n_embeddings: int
    fingerprint: str
    numerics: str

    @property
    def reads_tries(self) -> bool:
        """Whether beginnings that variants share are computed once."""
        return self.shares

    @property
    def attention(self) -> str:
        """What runs its attention, as transformers names it."""
        return str(self.model.config._attn_implementation)  # noqa: SLF001 - transformers has no other name for it

    @property
    def is_remembered(self) -> bool:
        """Never: its weights change under its name."""
        return False

    @property
    def tokenizer_identity(self) -> str:
        """Hash of what decides how its tokens become text."""
        return hash_of_tokenizer(self.tokenizer, None)

    def n_tokens(self, items: Sequence[ReasonedTokens], options: SensitivityOptions) -> int:
        """Tokens that go forward through the model for items that are run together."""
        if options.method == "gradient":
            return gradient_tokens(items, options.noise_samples, shares=self.shares)
        read_again = READ_AGAIN.get(self.model.device.type, READ_AGAIN["cuda"])
        return sum(
            perturbation_tokens(item, most_tokens=self.most_tokens, read_again=read_again, shares=self.shares)
            for item in items
        )

    def perturbed(self, item: ReasonedTokens, options: SensitivityOptions, beat: Callable[[], None]) -> Floats:
        """Sensitivities of an item by perturbation."""
        if options.perturbation_id is None:
            raise ValueError("a work names its token to perturb with: got none")
        return perturbed(
            self._passes(backbone_of(self.model), beat),
            self.head,
            item,
            probe=options.probe,
            token_id=options.perturbation_id,
            most_tokens=self.most_tokens,
        )

    def gradients(
        self, batches: Sequence[Sequence[ReasonedTokens]], options: SensitivityOptions, beat: Callable[[], None]
    ) -> list[list[Gradients]]:
        """Sensitivities of items by the gradient, in float32 whatever the type of the weights."""
        # The weights may be others the next time, so their copy is not kept.
        weights = Float32Weights.of(self.model)
        passes = self._passes(backbone_of(self.model, weights), beat)
        head = replace(self.head, weights=weights) if weights.copies else self.head
        return [gradients(passes, head, batch, options, pad_id=0) for batch in batches]

    def batches(self, items: Sequence[ReasonedTokens]) -> Iterator[list[int]]:
        """Places of items that are run together by the gradient."""
        return item_batches(items, self.most_tokens, length_turn(self.model), clean_rows(_n_logits(self.model)))

    def _passes(self, ask: Ask, beat: Callable[[], None]) -> Passes:
        return Passes(ask, self.model.get_input_embeddings(), self.model.device, self.shares, beat)


def backbone_of(model: PreTrainedModel, weights: Float32Weights | None = None) -> Ask:
    """Passes of a model without its head.

    Args:
        model: The policy.
        weights: What it computes with instead of its own.
    """
    called = model.base_model if weights is None else weights.call(model.base_model)

    def ask(
        tokens: torch.Tensor, places: torch.Tensor, past: DynamicCache | None, columns: torch.Tensor
    ) -> torch.Tensor:
        found: Any = called(
            input_ids=tokens, position_ids=places, past_key_values=past, use_cache=past is not None, return_dict=True
        )
        states: torch.Tensor = found.last_hidden_state[:, columns]
        return states

    return ask


def pass_tokens(spec: ModelSpec) -> int:
    """Tokens of one pass at most, but for a row that is longer by itself."""
    if spec.chunk_tokens is not None:
        return spec.chunk_tokens
    return min(PASS_ON_A_PROCESSOR, spec.batch_tokens) if spec.device.startswith("cpu") else spec.batch_tokens


def load_policy(spec: ModelSpec, root: Path) -> LoadedPolicy:
    """Load a policy and check how it is asked.

    Args:
        spec: The model.
        root: Directory that all models are in.

    Returns:
        A policy that can be measured.

    Raises:
        ModelUnsuitableError: If it cannot serve; the message says what is wrong and what is expected.

    Cost:
        Reading the weights twice, of which once as `SourceFiles.fingerprint` does, and some thousand tokens.
    """
    path = checked_path(spec, root)
    architectures = read_json(spec, path / "config.json", dict).get("architectures") or []
    if not any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise ModelUnsuitableError(
            f"model {spec.id}: got the architecture {', '.join(map(str, architectures)) or 'none'}; a policy is a "
            "causal language model"
        )
    sources = SourceFiles.seen(path, weight_files(spec, path))
    model, tokenizer = load_files(spec, path, AutoModelForCausalLM, attention=spec.attention)
    fingerprint = sources.fingerprint(spec)
    model.requires_grad_(requires_grad=False)
    longest = longest_sequence(spec, model)
    try:
        return _served(spec, model, tokenizer, fingerprint, longest)
    except ModelUnsuitableError as error:
        raise ModelUnsuitableError(f"model {spec.id}: {error}") from error
    except Exception as error:
        # Architectures that are asked otherwise fail in ways of their own.
        raise ModelUnsuitableError(
            f"model {spec.id}: a {type(model).__name__} cannot be asked here ({type(error).__name__}: {error})"
        ) from error


def _served(
    spec: ModelSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fingerprint: str, longest: int
) -> LoadedPolicy:
    most_tokens = pass_tokens(spec)
    head = policy_head(model)
    check = check_beginnings(model, backbone_of(model), head, longest=longest)
    if not check.passed:
        why = check.failure or f"an error of {check.error:.2g} beside logits up to {check.largest:.2g}"
        log.warning("model %s does not go on from what it read before: %s; it reads whole rows", spec.id, why)
    needed = measuring_bytes(model, most_tokens=most_tokens, longest=longest, shares=check.passed)
    demand_room(
        needed, most=spec.max_forward_bytes, device=model.device, lower="chunk_tokens, batch_tokens or max_tokens"
    )
    numerics = numerics_of(
        model,
        str(model.config._attn_implementation),  # noqa: SLF001 - transformers has no other name for it
        "beginnings" if check.passed else "rows",
        most_tokens,
        spec.batch_tokens,
        longest,
    )
    return LoadedPolicy(
        spec=spec,
        model=model,
        tokenizer=tokenizer,
        head=head,
        check=check,
        shares=check.passed,
        most_tokens=most_tokens,
        max_tokens=longest,
        n_bytes=bytes_of(model),
        forward_bytes=needed,
        n_embeddings=int(model.get_input_embeddings().num_embeddings),
        fingerprint=fingerprint,
        numerics=numerics,
    )


def measuring_bytes(model: PreTrainedModel, *, most_tokens: int, longest: int, shares: bool) -> int:
    """Most memory of measuring an item or a batch beside the weights, by either method.

    Args:
        model: The policy.
        most_tokens: Most tokens of a pass; one longer row goes by itself.
        longest: Longest sequence.
        shares: Whether rows go on from keys and values of their beginnings.

    Returns:
        Bytes, whatever the length of the answer.

    Cost:
        O(parameters).
    """
    shape = ForwardShape.of(model)
    vocabulary = _n_logits(model)
    by_perturbation = perturbation_bytes(
        shape, most_tokens=most_tokens, longest=longest, vocabulary=vocabulary, n_read=longest, shares=shares
    )
    by_gradient = gradient_bytes(
        model, shape, most_tokens=most_tokens, longest=longest, vocabulary=vocabulary, n_read=longest
    )
    return max(by_perturbation, by_gradient)


def _n_logits(model: PreTrainedModel) -> int:
    """Logits of each position, V."""
    return int(model.get_output_embeddings().weight.shape[0])
