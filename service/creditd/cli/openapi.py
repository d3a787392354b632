"""The OpenAPI document: deploy/openapi.json and the output of `creditd openapi`."""

from __future__ import annotations

import json

from creditd.server.app import create_app
from creditd.server.settings import Settings


def document() -> str:
    """The document.

    Returns:
        JSON in a fixed layout, keys in the order of the document; it depends on no setting.
    """
    return json.dumps(create_app(Settings.model_construct()).openapi(), indent=1, ensure_ascii=False) + "\n"
