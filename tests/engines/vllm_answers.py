"""Answers of a vLLM server, written from the classes of vllm 0.33.0.

Read in the wheel `vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl`:

- `entrypoints/pooling/classify/protocol.py` and `serving.py`: bodies of `/classify`.
- `entrypoints/pooling/pooling/protocol.py` and `serving.py`, `entrypoints/pooling/utils.py`: bodies of `/pooling`.
- `entrypoints/pooling/base/protocol.py`: fields of requests; strings or token ids as `input`, or `messages`.
- `entrypoints/serve/engine/protocol.py`: usage, cards of models, and errors.
- `entrypoints/serve/exception_handling/error_response.py`: which exception is which status and type.
- `entrypoints/serve/middleware/authenticate.py`: keys, which only paths below `/v1` are asked for.
- `renderers/params.py`, `v1/engine/input_processor.py`: what is said of a prompt that is too long, or empty.
- `exceptions.py`: a full queue is a 503.
"""

import json
import math

MODEL = "org/reward"
MAX_MODEL_LEN = 512


def usage(n_tokens):
    """What a request cost, as `UsageInfo` says it."""
    return {
        "prompt_tokens": n_tokens,
        "total_tokens": n_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def classified(logits, n_tokens):
    """The answer of `/classify` for rows of logits."""
    data = [
        {"index": place, "label": f"LABEL_{row.index(max(row))}", "probs": row, "num_classes": len(row)}
        for place, row in enumerate(logits)
    ]
    return {
        "id": "classify-7f3a", "object": "list", "created": 1790000000, "model": MODEL, "data": data,
        "usage": usage(n_tokens),
    }  # fmt: skip


def pooled(logits, n_tokens):
    """The answer of `/pooling` for rows of logits: what is no finite number is null, as orjson writes it."""
    rows = [[value if math.isfinite(value) else None for value in row] for row in logits]
    data = [{"index": place, "object": "pooling", "data": row} for place, row in enumerate(rows)]
    return {
        "id": "pooling-7f3a", "object": "list", "created": 1790000000, "model": MODEL, "data": data,
        "usage": usage(n_tokens),
    }  # fmt: skip


def models(*names, longest=MAX_MODEL_LEN):
    """The answer of `/v1/models`."""
    cards = [
        {
            "id": name, "object": "model", "created": 1790000000, "owned_by": "vllm", "root": f"weights of {name}",
            "parent": None, "max_model_len": longest, "permission": [],
        }
        for name in names
    ]  # fmt: skip
    return {"object": "list", "data": cards}


def error(status, kind, message, param=None):
    """A status with the body of an `ErrorResponse`."""
    return status, {"error": {"message": message, "type": kind, "param": param, "code": status}}


TOO_MANY_TOKENS = error(400, "BadRequestError", "got at least 513 tokens of a possible 512", "input_tokens")
TOO_MANY_CHARACTERS = error(400, "BadRequestError", "got 99999 characters for 512 tokens", "input_text")
TOO_LONG_IN_OLDER_WORDS = error(400, "BadRequestError", "the model's maximum context length is 512 tokens")
TOO_LONG_FOR_THE_ENGINE = error(
    400, "BadRequestError", "a prompt of 600 is longer than the maximum model length of 512"
)
EMPTY = error(400, "BadRequestError", "The decoder prompt cannot be empty")
NOT_FINITE = error(400, "BadRequestError", "Out of range float values are not JSON compliant: nan")
"""What `/classify` says when a score is NaN: the answer cannot be written, and that counts as the caller's fault."""
TEMPLATE_REFUSES = error(400, "BadRequestError", "roles of SECRET must alternate")
UNKNOWN_TASK = error(400, "BadRequestError", "no such task: classify", "task")
UNKNOWN_MODEL = error(404, "NotFoundError", "no model of this name")
NO_ROUTE = error(404, "Not Found", "Not Found")
NO_CLASSIFIER = error(501, "NotImplementedError", "no classification with this model")
MALFORMED = error(400, "Bad Request", "1 validation error: SECRET", "input")
UNAUTHORIZED = (401, {"error": "Unauthorized"})
ENGINE_DEAD = error(500, "InternalServerError", "the server failed at SECRET")
BUSY = error(503, "Service Unavailable", "the queue is full")
BAD_GATEWAY = (502, "<html>bad gateway SECRET</html>")
GATEWAY_TIMEOUT = (504, "<html>gateway timeout</html>")


def encoded(answer):
    """A body as bytes: text as it is, anything else as JSON."""
    return answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
