"""Files as safetensors writes them, whole and broken, without the library."""

import hashlib
import json

import numpy as np

NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "uint8": "U8"}


def packed(tensors, metadata=None, **changed):
    """The bytes of a file with these arrays; `changed` replaces entries of its header."""
    header, body = ({} if metadata is None else {"__metadata__": metadata}), b""
    for name, array in tensors.items():
        stop = len(body) + array.nbytes
        header[name] = {"dtype": NAMES[str(array.dtype)], "shape": list(array.shape), "data_offsets": [len(body), stop]}
        body += array.tobytes()
    return with_header({**header, **changed}, body)


def with_header(header, body):
    """The bytes of a file whose header is this object, or this text."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + body


def numbers(seed=0, n=6):
    """An array."""
    return np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)


def checksum(content):
    """What a shard is sent with."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
