"""Prompts as the published Wan models were given them."""

import html
import re

import ftfy


def cleaned(prompt: str) -> str:
    """Return ``prompt`` with mended encoding, HTML entities resolved, white space single."""
    prompt = ftfy.fix_text(prompt)
    # Twice, because captions from the web carry entities of entities.
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
