"""Prompts as the published Wan models were given them."""

import html
import re


def cleaned(prompt: str) -> str:
    """Return ``prompt`` with mended encoding (where ftfy is installed), HTML entities resolved, white space single."""
    try:
        import ftfy
    except ModuleNotFoundError:
        pass
    else:
        prompt = ftfy.fix_text(prompt)
    # Twice, because captions from the web carry entities of entities.
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
