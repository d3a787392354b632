"""A server that speaks as vLLM does, without a model, and fails when it is told to."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from engines.vllm_answers import (
    EMPTY,
    MAX_MODEL_LEN,
    MODEL,
    NO_ROUTE,
    NOT_FINITE,
    TOO_MANY_TOKENS,
    UNAUTHORIZED,
    UNKNOWN_MODEL,
    classified,
    encoded,
    models,
    pooled,
)

PATIENCE_S = 60.0


def plain(text):
    """The logit of a text: its length, and a little of its letters."""
    return [len(text) + sum(map(ord, text)) / 2**20]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.owner.connections += 1

    def do_GET(self):
        self._answer(None)

    def do_POST(self):
        content = self.rfile.read(int(self.headers["content-length"]))
        self._answer(json.loads(content))

    def _answer(self, body):
        owner = self.server.owner
        with owner.lock:
            owner.requests.append((self.path, dict(self.headers.items()), body))
            step = owner.script.pop(0) if owner.script and body is not None else owner.always if body else None
            owner.running += 1
            owner.most_running = max(owner.most_running, owner.running)
        try:
            if callable(step):
                step(self)
            else:
                self.reply(*(step or owner.answer(self.path, self.headers, body)))
        finally:
            with owner.lock:
                owner.running -= 1

    def reply(self, status, answer, headers=()):
        """Send an answer."""
        content = encoded(answer)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        """Who leaves in the middle of an answer is no error here."""


class VllmServer:
    """A server in threads of this process.

    Attributes:
        script: What the next scores are, one after another: a status and an answer, or what is done with the handler.
        always: What all later scores are; None: as vLLM would.
        requests: Path, headers and body of everything that was asked.
        connections: Connections that were opened.
        most_running: Most requests at a time.
    """

    def __init__(self, logits=plain, longest=MAX_MODEL_LEN, key=None, names=(MODEL,), delay_s=0.0):
        self.logits, self.longest, self.key, self.names, self.delay_s = logits, longest, key, names, delay_s
        self.script, self.always = [], None
        self.requests, self.connections, self.running, self.most_running = [], 0, 0, 0
        self.lock, self.released = threading.Lock(), threading.Event()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        """Stop listening, and let go of whoever hangs."""
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(PATIENCE_S)

    @property
    def scored(self):
        """Bodies of the requests for scores."""
        return [body for _, _, body in self.requests if body is not None]

    def hang(self, handler):
        """Say nothing until the test is over."""
        self.released.wait(PATIENCE_S)
        handler.close_connection = True

    def drop(self, handler):
        """Close the connection without a byte."""
        handler.close_connection = True

    def break_off(self, handler):
        """Close the connection in the middle of an answer."""
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"data": [')
        handler.wfile.flush()
        handler.close_connection = True

    def drip(self, handler):
        """Send a byte now and then, without an end."""
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        handler.close_connection = True
        while not self.released.wait(0.02):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    def flood(self, handler):
        """Send more than any answer has."""
        handler.send_response(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        handler.close_connection = True
        while not self.released.is_set():
            handler.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

    def answer(self, path, headers, body):
        """What vLLM would say."""
        if self.key and path.startswith("/v1") and headers.get("authorization") != f"Bearer {self.key}":
            return UNAUTHORIZED
        if path == "/health":
            return 200, ""
        if path == "/v1/models":
            return 200, models(*self.names, longest=self.longest)
        if path not in {"/classify", "/pooling"}:
            return NO_ROUTE
        if body.get("model") not in {None, *self.names}:
            return UNKNOWN_MODEL
        return self._scores(path, body)

    def _scores(self, path, body):
        self.released.wait(self.delay_s)
        texts = body["input"] if "input" in body else [self.rendered(body["messages"])]
        if any(len(text) > self.longest for text in texts):
            return TOO_MANY_TOKENS
        if not all(texts):
            return EMPTY
        logits = [self.logits(text) for text in texts]
        if path == "/pooling":
            return 200, pooled(logits, sum(map(len, texts)))
        if not all(math.isfinite(value) for row in logits for value in row):
            return NOT_FINITE
        return 200, classified(logits, sum(map(len, texts)))

    @staticmethod
    def rendered(messages):
        """A chat template of the server."""
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)
