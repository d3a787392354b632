import logging
import os

import orjson
import pytest

from creditd.server.logs import JsonLines


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    """The settings of a test are the ones that it names."""
    for name in [name for name in os.environ if name.startswith("CREDITD_")]:
        monkeypatch.delenv(name)


class _Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.setFormatter(JsonLines())
        self.texts = []

    def emit(self, record):
        self.texts.append(self.format(record))


class Log:
    """What the service has logged, formatted as it would be on standard error."""

    def __init__(self, texts):
        self.texts = texts

    @property
    def requests(self):
        """The lines of requests, parsed."""
        lines = [orjson.loads(text) for text in self.texts]
        return [line for line in lines if line["logger"] == "creditd.request"]

    @property
    def others(self):
        """All other lines, parsed."""
        lines = [orjson.loads(text) for text in self.texts]
        return [line for line in lines if line["logger"] != "creditd.request"]


@pytest.fixture
def log():
    """The lines that the service logs during a test."""
    handler, logger = _Lines(), logging.getLogger("creditd")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield Log(handler.texts)
    logger.removeHandler(handler)
    logger.setLevel(before)
