"""HTML pages that ask nobody for anything: their templates and scripts, and how they are kept."""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup


def render(template: str, script: str = "", **facts: Any) -> str:
    """A page. template: of jinja2; it escapes what it shows. facts: what it is rendered with.

    script: JavaScript for the page, which gets it as `script`; `script_hash` is what its content
    policy names, so that no other script runs.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    facts |= {"script": Markup(script), "script_hash": digest}
    return environment.from_string(template).render(**facts)


def keep(page: Path, text: str) -> None:
    """Write a page that is no artifact, whole or not at all; one that says the same stays."""
    if page.exists() and page.read_text(encoding="utf-8") == text:
        return
    page.parent.mkdir(parents=True, exist_ok=True)
    new = page.with_name(f".{page.name}.{os.getpid()}.part")
    new.write_text(text, encoding="utf-8")
    os.replace(new, page)
