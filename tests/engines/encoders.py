"""Directories of embedding models, with random weights, with and without the files of sentence-transformers."""

import json

import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from engines.architectures import SHAPE, made
from engines.saved import tokenizer

POOLINGS = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
OWNER = "sentence_transformers.models."


def encoder(name="bert", **config):
    """The encoder of a name, the same each time."""
    torch.manual_seed(0)
    if name == "bert":
        return BertModel(BertConfig(**{**SHAPE, **config})).eval()
    if name == "roberta":
        return RobertaModel(RobertaConfig(**{**SHAPE, **config})).eval()
    return made(name, **config).base_model


def saved_encoder(folder, name="bert", **config):
    """A directory with an encoder and its tokenizer, and nothing that says how vectors are made."""
    model = encoder(name, **config)
    model.save_pretrained(folder)
    tokenizer(template=None).save_pretrained(folder)
    return model


def with_modules(folder, *kinds, pooling="mean", owner=OWNER):
    """The files of sentence-transformers beside a model."""
    modules = [
        {"idx": at, "name": str(at), "path": "" if kind == "Transformer" else f"{at}_{kind}", "type": owner + kind}
        for at, kind in enumerate(kinds or ("Transformer", "Pooling", "Normalize"))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"word_embedding_dimension": 32, **{flag: kind == pooling for kind, flag in POOLINGS.items()}}
    written(folder / "1_Pooling" / "config.json", settings)


def written(file, settings):
    """A file of settings."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(settings))
