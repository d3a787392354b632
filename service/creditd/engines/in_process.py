"""Sensitivities by a trainer's own model, in its process: no service, no copy of the weights, current by nature.

Every pass goes through the model itself and no module inside of it, so that the hooks of FSDP and ZeRO run. There all
processes make equally many passes of equal kinds, or they would wait for each other for ever: `agree` tells how many.

Reference: OAR, arXiv:2601.07408v1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from creditd.engines.answer_heads import Float32Weights, GivenLogits
from creditd.engines.gradient import gradients
from creditd.engines.model_files import positions_of
from creditd.engines.outcome_probes import answer_places
from creditd.engines.perturbation import MOST_ROWS, READ_AGAIN, perturbation_passes, perturbed
from creditd.engines.policy_passes import Ask, Passes, Rows
from creditd.engines.policy_protocol import ProbeName, ReasonedTokens, SensitivityOptions
from creditd.engines.policy_work import Distinct, item_batches
from creditd.engines.reward_scorers import length_turn
from creditd.engines.sharded_models import is_sharded, kept_gradients

Floats: TypeAlias = NDArray[np.float64]

MOST_PASS_LOGITS = 1 << 25
"""Logits of one pass at most, but for one row that has more."""
REFUSED = 1 << 30
"""What processes agree on in the place of passes where one of them got items that cannot be measured."""
_WRAPPERS = ("DistributedDataParallel", "DeepSpeedEngine", "OptimizedModule")
"""What is taken off a model: it is for gradients of the weights, or for compiled code, and not for the weights."""
_STATEFUL = ("linear", "mamba", "recurrent", "conv")
"""Kinds of layers that keep something else than keys and values, by parts of their names."""


@dataclass(frozen=True)
class Measured:
    """Sensitivities of an item.

    Attributes:
        sensitivities: Shape (R,), float64, nats: of each measured position in its order.
        spread: By the gradient the standard error over draws as a share of the mean; None for one draw, and by
            perturbation.
    """

    sensitivities: Floats
    spread: float | None


def alone(n_passes: int) -> int:
    """The passes of a process that is the only one."""
    return n_passes


def measure_sensitivities(
    model: nn.Module,
    items: Sequence[ReasonedTokens],
    options: SensitivityOptions,
    *,
    most_tokens: int = 4096,
    agree: Callable[[int], int] = alone,
    shares: bool | None = None,
    beat: Callable[[], None] = lambda: None,
) -> list[Measured]:
    """How much the answers of a model depend on the tokens before them, by its weights as they are now.

    Args:
        model: A causal language model of transformers, as a trainer has it: by itself, with peft around it, or wrapped
            by DDP, FSDP or DeepSpeed. Its mode, its gradients and all random numbers stay as they are.
        items: Of this process. Copies are measured once.
        options: How they are measured; by perturbation the token is named (`padding_to_perturb` finds the padding
            token).
        most_tokens: Most tokens of a pass; a longer row goes by itself.
        agree: From the number of units of this process to the largest of all processes: an all-reduce, called once.
            A unit is a pass by perturbation; by the gradient a clean pass and, for each draw, one there and back.
            `REFUSED` stands for items that cannot be measured.
        shares: Whether rows go on from keys and values of their beginnings. None: unless the configuration names
            layers that keep something else.
        beat: Called before each pass.

    Returns:
        One for each item, as `PolicyEngine` would say of the same weights up to rounding: the head is the model's own,
        in its type. Items without measured positions have none.

    Raises:
        ValueError: If the token to perturb with is not named or not in the vocabulary, an answer has no token before
            it, a measured position is not before the answer, a token is not in the vocabulary, a row is longer than the
            model has positions, or by the gradient the model computes in another type than float32 and is sharded, so
            that no copy of its weights can be made. In every process, whichever of them it was found in, and none waits
            for another in vain.

    Cost:
        As `perturbed` and `gradients`; by the gradient also a copy of the weights that are not float32, for as long as
        it takes. A process with less to do than others makes passes over two tokens instead.

    Reference:
        arXiv:2601.07408v1.

    Differs from the paper:
        As `creditd.engines.perturbation` and `creditd.engines.gradient`.
    """
    model, inner = _unwrapped(model), _language_model(model)
    config = inner.config.get_text_config()
    wrong = _wrong(items, options, int(config.vocab_size), positions_of(inner))
    if wrong is not None:
        agree(REFUSED)
        raise ValueError(wrong)
    shares = _keeps_keys(inner) if shares is None else shares
    own = Distinct.of([item for item in items if len(item.positions)])
    limits = _Limits(most_tokens, int(config.vocab_size), shares, inner.device, length_turn(inner))
    with _undisturbed(model, inner.device), ExitStack() as held:
        called = model
        if options.method == "gradient" and not is_sharded(model):
            weights = Float32Weights.of(model)
            held.callback(weights.copies.clear)
            called = weights.call(model) if weights.copies else model
        passes = Passes(_through(called, inner), inner.get_input_embeddings(), inner.device, shares, beat)
        if options.method == "perturbation":
            found = _by_perturbation(passes, own.items, options, limits, agree)
        else:
            found = _by_gradient(passes, own.items, options, limits, agree)
    numbers = iter(own.places)
    return [found[next(numbers)] if len(item.positions) else Measured(np.empty(0), None) for item in items]


@dataclass(frozen=True)
class _Limits:
    """What decides how items are put into passes.

    Attributes:
        most_tokens: Most tokens of a pass.
        vocabulary: Logits of each position that is read.
        shares: Whether rows go on from their beginnings.
        device: Where the model runs.
        turn: Rows up to this length and longer ones go apart; None: they need not.
    """

    most_tokens: int
    vocabulary: int
    shares: bool
    device: torch.device
    turn: int | None

    @property
    def read_again(self) -> int:
        """Clean tokens that a row of a pass reads again at most."""
        return READ_AGAIN.get(self.device.type, READ_AGAIN["cuda"])

    def rows(self, item: ReasonedTokens, probe: ProbeName) -> int:
        """Rows of one pass of an item at most."""
        return max(1, min(MOST_ROWS, MOST_PASS_LOGITS // (self.vocabulary * len(answer_places(item, probe)))))

    def batches(self, items: Sequence[ReasonedTokens], probe: ProbeName) -> Iterator[list[int]]:
        """Places of items that are run together by the gradient: all columns that any row reads are read of all."""
        for batch in item_batches(items, self.most_tokens, self.turn):
            part: list[int] = []
            columns: set[int] = set()
            for place in batch:
                wanted = columns | set(answer_places(items[place], probe).tolist())
                if part and len(wanted) * (len(part) + 1) * self.vocabulary > MOST_PASS_LOGITS:
                    yield part
                    part, wanted = [], set(answer_places(items[place], probe).tolist())
                part, columns = [*part, place], wanted
            yield part


def _by_perturbation(
    passes: Passes,
    items: Sequence[ReasonedTokens],
    options: SensitivityOptions,
    limits: _Limits,
    agree: Callable[[int], int],
) -> list[Measured]:
    rows = [limits.rows(item, options.probe) for item in items]
    counts = [
        perturbation_passes(
            item,
            most_tokens=limits.most_tokens,
            read_again=limits.read_again,
            shares=limits.shares,
            most_rows=most,
        )
        for item, most in zip(items, rows, strict=True)
    ]
    idle = _agreed(sum(counts), agree) - sum(counts)
    found = [
        perturbed(
            passes,
            GivenLogits(),
            item,
            probe=options.probe,
            token_id=options.perturbation_id or 0,
            most_tokens=limits.most_tokens,
            most_rows=most,
        )
        for item, most in zip(items, rows, strict=True)
    ]
    with torch.no_grad():
        for _ in range(idle):
            passes.clean(Rows(np.zeros((1, 2), dtype=np.int64), (np.array([0]),)))
    return [Measured(one, None) for one in found]


def _by_gradient(
    passes: Passes,
    items: Sequence[ReasonedTokens],
    options: SensitivityOptions,
    limits: _Limits,
    agree: Callable[[int], int],
) -> list[Measured]:
    batches = list(limits.batches(items, options.probe))
    idle = _agreed(len(batches), agree) - len(batches)
    found: dict[int, Measured] = {}
    for batch in batches:
        made = gradients(passes, GivenLogits(), [items[place] for place in batch], options, pad_id=0)
        found.update((place, Measured(one.sensitivities, one.spread)) for place, one in zip(batch, made, strict=True))
    two = np.zeros(2, dtype=np.int64)
    for _ in range(idle):
        gradients(passes, GivenLogits(), [ReasonedTokens(two, two, np.array([0]), (1, 2))], options, pad_id=0)
    return [found[place] for place in range(len(items))]


def _agreed(n_units: int, agree: Callable[[int], int]) -> int:
    """The largest number of units, if no process was refused."""
    most = agree(n_units)
    if most >= REFUSED:
        raise ValueError("another process got items that cannot be measured: nothing is, expected none")
    return most


def _wrong(
    items: Sequence[ReasonedTokens], options: SensitivityOptions, vocabulary: int, longest: int | None
) -> str | None:
    """What is wrong with items or options; None: nothing."""
    if options.method == "perturbation":
        if options.perturbation_id is None:
            return "got no perturbation_id; expected the token to perturb with"
        if not 0 <= options.perturbation_id < vocabulary:
            return f"got the perturbation_id {options.perturbation_id}; expected a token below {vocabulary}"
    for place, item in enumerate(items):
        what = _wrong_item(item, vocabulary, longest)
        if what is not None:
            return f"item {place}: {what}"
    return None


def _wrong_item(item: ReasonedTokens, vocabulary: int, longest: int | None) -> str | None:
    """What is wrong with an item; None: nothing."""
    start, stop = item.answer
    if not 0 <= start < stop <= len(item.completion_ids) or len(item.prompt_ids) + start < 1:
        return f"got the answer [{start}, {stop}); expected tokens of the completion with one before it"
    positions = np.asarray(item.positions)
    if len(positions) and not (positions[0] >= 0 and positions[-1] < start and (np.diff(positions) > 0).all()):
        return "expected measured positions that ascend and stand before the answer"
    n_tokens = len(item.prompt_ids) + stop - 1
    if longest is not None and n_tokens > longest:
        return f"got {n_tokens} tokens before the last one of the answer; expected at most {longest}"
    ids = np.concatenate([item.prompt_ids, item.completion_ids[:stop]])
    if ids.min() < 0 or ids.max() >= vocabulary:
        return f"got token {int(ids.max() if ids.min() >= 0 else ids.min())}; expected one below {vocabulary}"
    return None


def _unwrapped(model: nn.Module) -> nn.Module:
    """A model without what is around gradients of its weights."""
    while type(model).__name__ in _WRAPPERS:
        name = "_orig_mod" if type(model).__name__ == "OptimizedModule" else "module"
        model = getattr(model, name)
    return model


def _language_model(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside of whatever is around it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            return module
    raise ValueError(f"got a {type(model).__name__}; expected a causal language model of transformers")


def _keeps_keys(model: PreTrainedModel) -> bool:
    """Whether all that its layers keep of tokens are keys and values, by its configuration."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    stateful = bool(getattr(model, "_is_stateful", False))
    return not stateful and not any(part in str(kind) for kind in kinds for part in _STATEFUL)


def _through(called: Callable[..., Any], inner: PreTrainedModel) -> Ask:
    """Passes through a whole model, with logits where they are read alone if it can do that."""
    keeps = "logits_to_keep" in inspect.signature(type(inner).forward).parameters

    def ask(
        tokens: torch.Tensor, places: torch.Tensor, past: DynamicCache | None, columns: torch.Tensor
    ) -> torch.Tensor:
        wanted = {"logits_to_keep": columns} if keeps else {}
        found = called(
            input_ids=tokens,
            position_ids=places,
            past_key_values=past,
            use_cache=past is not None,
            return_dict=True,
            **wanted,
        )
        logits: torch.Tensor = found.logits
        return logits if keeps else logits[:, columns]

    return ask


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """A model in evaluation mode and without autocast, as it was before afterwards.

    In evaluation mode there is no dropout, so that no random number is drawn, and no gradient checkpointing. Weights
    ask for no gradient, so that nothing is kept for one; those of FSDP and ZeRO are left as they are, because hooks are
    made by that.
    """
    modes = [(module, module.training) for module in model.modules()]
    asking = [] if is_sharded(model) else [one for one in model.parameters() if one.requires_grad]
    for parameter in asking:
        parameter.requires_grad = False
    for module, _ in modes:
        module.training = False
    try:
        with torch.autocast(device.type, enabled=False), kept_gradients(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in asking:
            parameter.requires_grad = True
