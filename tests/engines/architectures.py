"""Small models of every shape that engines have to take, with random weights."""

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    MixtralConfig,
    MixtralForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

VOCABULARY = 300
POSITIONS = 256
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "num_labels": 1,
    "pad_token_id": 0,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
    "num_labels": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CAUSAL = {
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**GROUPED)),
    "qwen2": lambda: Qwen2ForSequenceClassification(Qwen2Config(**GROUPED)),
    "qwen3": lambda: Qwen3ForSequenceClassification(Qwen3Config(**GROUPED, head_dim=8)),
    "mistral": lambda: MistralForSequenceClassification(MistralConfig(**GROUPED, sliding_window=None)),
    "gpt_neox": lambda: GPTNeoXForSequenceClassification(GPTNeoXConfig(**SHAPE)),
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2)),
}
"""Models whose attention takes any mask; positions are rotary but for GPT-2."""
WINDOWED = {
    "mistral with a window": lambda: MistralForSequenceClassification(MistralConfig(**GROUPED, sliding_window=8)),
    "gemma2": lambda: Gemma2ForSequenceClassification(Gemma2Config(**GROUPED, head_dim=8, sliding_window=8)),
}
"""Models that look at the last tokens alone in some layers: nodes that stand beside each other are not neighbours."""
EXPERTS = {
    "mixtral": lambda: MixtralForSequenceClassification(
        MixtralConfig(
            **{**GROUPED, "hidden_size": 256, "intermediate_size": 512},
            num_local_experts=8,
            num_experts_per_tok=2,
            sliding_window=None,
        )
    ),
}
"""Models whose tokens choose their experts: what else is in a pass changes the last bits of a state."""
BIDIRECTIONAL = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SHAPE)),
    "deberta": lambda: DebertaV2ForSequenceClassification(
        DebertaV2Config(**SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"])
    ),
}
"""Models in which every token sees every other."""


def made(name, **config):
    """The model of a name, the same each time, in evaluation mode."""
    torch.manual_seed(0)
    model = {**CAUSAL, **EXPERTS, **WINDOWED, **BIDIRECTIONAL}[name]().eval()
    if config:
        torch.manual_seed(0)
        model = type(model)(type(model.config)(**{**model.config.to_dict(), **config})).eval()
    return model
