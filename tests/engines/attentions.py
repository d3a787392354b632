"""Attention as plain transformers gives it, from a table of positions by positions."""

import torch

from engines.architectures import made

_QUERIES_AND_KEYS = ("q_proj", "k_proj", "query", "key", "query_key_value", "c_attn")


def sharp(name, **config):
    """The model of a name, whose queries and keys are so large that its attention is far from even."""
    return sharpened(made(name, **config))


def sharpened(model):
    """The same model with larger queries and keys, but not so large that rounding is."""
    factor = 12.0 if model.config.hidden_size <= 64 else 4.0
    with torch.no_grad():
        for key, values in model.named_parameters():
            if values.ndim == 2 and any(part in key.split(".") or f"{part}_proj" in key for part in _QUERIES_AND_KEYS):
                values.mul_(factor)
    return model


def own_row(model, sequence, position):
    """Attention of the last layer from one position, the mean over heads."""
    original = model.config._attn_implementation
    if original != "eager":
        model.set_attn_implementation("eager")
    row = torch.as_tensor(sequence)[None]
    with torch.inference_mode():
        said = model.base_model(input_ids=row, attention_mask=torch.ones_like(row), output_attentions=True)
    if original != "eager":
        model.set_attn_implementation(original)
    return said.attentions[-1][0, :, position].double().mean(dim=0).numpy()
