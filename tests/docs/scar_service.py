"""The service of SCAR.md and OAR.md: their models are the toys that the pages describe. Run as a process of its own.

The variable PORT names its port; without it a free one is taken.
"""

import os
import re
import sys


def toy(_, text):
    """1 for Paris, 1 more with the Seine, 0.125 off for each word."""
    words = re.findall(r"\w+", text)
    return float("Paris" in words) + float({"Paris", "Seine"} <= set(words)) - 0.125 * len(words)


def depends(_, item, __):
    """2 nats on each digit, 1 on each plus, nothing on other characters."""
    characters = [chr(item.completion_ids[place]) for place in item.positions]
    return [2.0 * one.isdecimal() + 1.0 * (one == "+") for one in characters]


def main() -> int:
    """Serve until asked to end."""
    from creditd.engines.fake import FakeEngine
    from creditd.engines.fake_policy import FakePolicy
    from creditd.engines.model_spec import ModelSpec
    from creditd.engines.registry import Registry
    from creditd.server.app import create_app
    from creditd.server.logs import configure_logging
    from creditd.server.resources import Resources
    from creditd.server.serve import serve
    from creditd.server.settings import Settings

    settings = Settings(port=int(os.environ.get("PORT", "0")))
    engines = {"rm": FakeEngine(toy, ModelSpec("rm", "nowhere"))}
    policies = {"policy": FakePolicy(depends, ModelSpec("policy", "nowhere", kind="policy"), version="first")}
    configure_logging()
    app = create_app(settings, Resources(settings, engines=Registry(engines, policies=policies)))
    return serve(app, lambda port: sys.stdout.write(f"listens on http://127.0.0.1:{port}\n") and sys.stdout.flush())


if __name__ == "__main__":
    sys.exit(main())
