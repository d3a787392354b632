"""How tests ask a remote engine."""

import math
import time

from engines.texts import of_one
from engines.vllm_server import PATIENCE_S

KEY = "a-secret-key"


def one(completion, prompt="why?"):
    """A prompt with one completion."""
    return of_one(prompt, completion)


def asked(engine, *texts, within_s=math.inf):
    """The future of texts."""
    return engine.submit(engine.prepared(texts), time.monotonic() + within_s)


def scored(engine, *texts):
    """What an engine answers."""
    return asked(engine, *texts).result(PATIENCE_S)
