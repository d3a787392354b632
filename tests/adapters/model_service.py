"""A service with a reward model whose scores the tests know: run by the tests of trainers, as a process of its own.

Usage: python model_service.py SPEC

SPEC is a JSON object with fields of `ModelSpec`, such as `max_tokens`; a token is a character.
"""

import json
import sys

WORDS = ("one", "two", "three", "four", "five", "six")
CURSE = "five"
"""The model `cursed` has no number for it."""


def worth(prompt, text):
    """What a text is worth as an answer to a prompt."""
    asked = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
    return (WORDS.index(text) / 5 if text in WORDS else -1.0) + len(asked) / 7


def cursed(prompt, text):
    """The same, and NaN for one word."""
    return float("nan") if text == CURSE else worth(prompt, text)


def judged(prompt, text):
    """What a whole completion is worth: its words, two of them together more, and less the longer it is."""
    words = text.split()
    together = 1.5 * ("one" in words and "two" in words)
    return sum(worth(prompt, word) for word in words if word in WORDS) / 4 + together - len(text) / 64


def choosy(prompt, text):
    """The same, and NaN for a text that ends with one word."""
    return float("nan") if text.endswith(CURSE) else judged(prompt, text)


def broken(*_):
    """A model that fails."""
    raise ValueError


def main(spec: str = "{}") -> int:
    """Serve until asked to end."""
    from creditd.engines.fake import FakeEngine
    from creditd.engines.model_spec import ModelSpec
    from creditd.engines.registry import Registry
    from creditd.server.app import create_app
    from creditd.server.logs import configure_logging
    from creditd.server.resources import Resources
    from creditd.server.serve import serve
    from creditd.server.settings import Settings

    scores = {"rm": worth, "cursed": cursed, "broken": broken, "judged": judged, "choosy": choosy}
    settings = Settings(port=0)
    engines = {
        name: FakeEngine(score, ModelSpec(name, "nowhere", **json.loads(spec))) for name, score in scores.items()
    }
    configure_logging()
    app = create_app(settings, Resources(settings, engines=Registry(engines)))
    return serve(app, lambda port: sys.stdout.write(f"listens on http://127.0.0.1:{port}\n") and sys.stdout.flush())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
