"""From a directory that `save_pretrained` wrote to a model that can be asked; what is unsuitable is said at boot.

Weights are safetensors, code is transformers' own, files are local and inside one root.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, PreTrainedModel

from creditd.engines.attention_readers import AttentionReader, attention_reader
from creditd.engines.chat import ChatText
from creditd.engines.directories import checked_path, read_json, weight_files
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.fingerprints import SourceFiles
from creditd.engines.memory import Reading
from creditd.engines.model_files import bytes_of, load_files, longest_sequence
from creditd.engines.model_spec import ModelSpec
from creditd.engines.numerics import numerics_of
from creditd.engines.own_scores import check_own_scores
from creditd.engines.reading import FLEX_ATTENTION, choose_reader, chunk_tokens
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, is_causal
from creditd.engines.self_check import SelfCheck

log = logging.getLogger("creditd.engines")


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
        pad_id: The token before which a causal model stops reading a text's end; None where it reads all.
        n_embeddings: Tokens that it knows.
        fingerprint: Digest of the files that it was loaded from.
        numerics: What decides the last bits of its scores.
        attended: What reads its attention, or why nothing does.
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
    pad_id: int | None
    n_embeddings: int
    fingerprint: str
    numerics: str
    attended: AttentionReader | ModelUnsuitableError

    @property
    def reads_tries(self) -> bool:
        """Whether distinct prefixes are computed once."""
        return self.reading != "batches"

    @property
    def attention(self) -> str:
        """What runs its attention, as registrations name it."""
        return _attention(self.model, self.reading)

    @property
    def is_remembered(self) -> bool:
        """Whether its scores may be remembered."""
        return self.spec.is_remembered(self.text.template)


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
        Reading the weights twice, of which once as `SourceFiles.fingerprint` does, and some two thousand tokens.
    """
    path = checked_path(spec, root)
    architectures = read_json(spec, path / "config.json", dict).get("architectures") or []
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        raise ModelUnsuitableError(
            f"model {spec.id}: got the architecture {', '.join(map(str, architectures)) or 'none'}; a reward model is "
            "one for sequence classification"
        )
    # Attention by blocks is made here, for tries alone.
    attention = None if spec.attention == FLEX_ATTENTION else spec.attention
    sources = SourceFiles.seen(path, weight_files(spec, path))
    model, tokenizer = load_files(spec, path, AutoModelForSequenceClassification, attention=attention)
    return _served(spec, model, tokenizer, sources.fingerprint(spec))


def _served(
    spec: ModelSpec,
    model: PreTrainedModel,
    tokenizer: Any,  # noqa: ANN401 - transformers' own
    fingerprint: str,
) -> LoadedReward:
    longest = longest_sequence(spec, model)
    try:
        text = ChatText(tokenizer, spec.chat_template)
        reader = choose_reader(spec, model, longest=longest, pad_id=tokenizer.pad_token_id or 0)
        pad_id = model.config.get_text_config().pad_token_id if is_causal(model) else None
        check_own_scores(model, reader.scorer, longest=longest, pad_id=pad_id)
    except ModelUnsuitableError as error:
        raise ModelUnsuitableError(f"model {spec.id}: {error}") from error
    except Exception as error:
        # Architectures that are asked otherwise fail in ways of their own.
        raise ModelUnsuitableError(
            f"model {spec.id}: a {type(model).__name__} cannot be asked here ({type(error).__name__}: {error})"
        ) from error
    return LoadedReward(
        spec=spec,
        model=model,
        text=text,
        scorer=reader.scorer,
        reading=reader.reading,
        check=reader.check,
        max_tokens=longest,
        n_bytes=bytes_of(model),
        forward_bytes=reader.forward_bytes,
        pad_id=pad_id,
        n_embeddings=int(model.get_input_embeddings().num_embeddings),
        fingerprint=fingerprint,
        numerics=numerics_of(
            model, _attention(model, reader.reading), reader.reading, chunk_tokens(spec), spec.batch_tokens, longest
        ),
        attended=_attended(spec, model, reader.scorer, text, longest=longest),
    )


def _attended(
    spec: ModelSpec, model: PreTrainedModel, scorer: TrieScorer | LengthScorer, text: ChatText, *, longest: int
) -> AttentionReader | ModelUnsuitableError:
    """What reads its attention; a model without any has scores all the same."""
    try:
        if not text.tells_characters:
            raise ModelUnsuitableError("its tokenizer does not tell the characters of its tokens; expected a fast one")  # noqa: TRY301 - one of several reasons
        return attention_reader(model, scorer, longest=longest)
    except ModelUnsuitableError as error:
        why = ModelUnsuitableError(f"the attention of this model cannot be told: {error}")
    except Exception as error:  # noqa: BLE001 - architectures that are asked otherwise fail in ways of their own
        why = ModelUnsuitableError(
            f"the attention of this model, a {type(model).__name__}, cannot be told ({type(error).__name__})"
        )
        why.__cause__ = error
    log.info("model %s: %s", spec.id, why)
    return why


def _attention(model: PreTrainedModel, reading: Reading) -> str:
    # transformers has no other name for it
    return FLEX_ATTENTION if reading == "blocks" else str(model.config._attn_implementation)  # noqa: SLF001
