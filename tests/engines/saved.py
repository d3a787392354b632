"""Directories as `save_pretrained` writes them, with a tokenizer that is made here."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engines.architectures import VOCABULARY, made

TEXT = ["the quick brown fox jumps over the lazy dog", "a question and an answer", "1 2 3 4 5 6 7 8 9 0"]
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</{{ message['role'] }}>{% endfor %}"
)


def tokenizer(template=TEMPLATE):
    """A byte-level BPE tokenizer, for any text."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 3,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(TEXT, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=found, **SPECIAL)
    wrapped.chat_template = template
    return wrapped


def saved(folder, name="llama", *, template=TEMPLATE, **config):
    """A directory with a model and its tokenizer."""
    model = made(name, **config)
    model.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return model
