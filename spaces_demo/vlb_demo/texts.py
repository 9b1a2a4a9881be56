r"""Every word of the page, in English and Japanese, from words.toml.

What stands on the page from the start is translated by Gradio in the browser (`T`), results come in both languages (`both`),
and messages in the one that the browser asks for (`say`).
"""

import html
import re
import tomllib
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from markupsafe import Markup, escape

LANGUAGES = ("en", "ja")
WORDS = tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8"))


def _page(language: str) -> dict[str, str]:
    page = WORDS[language]["page"]
    texts = {f"{name}_text": f"{equation}\n\n{page[f'{name}_text']}" for name, equation in WORDS["equations"].items()}
    # Gradio has words of its own under plain names.
    return {f"vlb_{key}": text for key, text in (page | texts).items()}


I18N = gr.I18n(**{language: _page(language) for language in LANGUAGES})


def T(key: str) -> gr.i18n.I18nData:
    r"""What stands on the page, for the browser to translate."""
    return I18N(f"vlb_{key}")


def both(key: str, **values: Any) -> Markup:
    r"""A sentence for the page, in both languages: the style sheet shows the one that the browser prefers."""
    return _in_both("span", "said", key, values)


def lettering(key: str, **values: Any) -> str:
    r"""What stands in a plot, as it is drawn: in English, until `letterings_in_both`."""
    return WORDS["en"]["plot"][key].format(**values)


def letterings_in_both(svg: str) -> str:
    r"""An SVG file whose letterings are in both languages; numbers and names stay as they are."""
    return re.sub(r"(<text\b[^>]*>)([^<]*)(?=</text>)", lambda match: match[1] + str(_lettering(match[2])), svg)


def _lettering(text: str) -> str:
    for key, template in WORDS["en"]["plot"].items():
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(template))
        if match := re.fullmatch(pattern, html.unescape(text)):
            return _in_both("tspan", "plot", key, match.groupdict())
    return text


def _in_both(tag: str, part: str, key: str, values: dict[str, Any]) -> Markup:
    parts = (
        f'<{tag} class="vlb-{language}" lang="{language}">{escape(WORDS[language][part][key].format(**values))}</{tag}>'
        for language in LANGUAGES
    )
    return Markup("".join(parts))


def say(key: str, **values: Any) -> str:
    r"""A sentence in the language that the visitor's browser asks for first; English for those who ask for neither."""
    request = LocalContext.request.get(None)
    accepted = "" if request is None else str(request.headers.get("accept-language") or "")
    language = "ja" if accepted.strip().lower().startswith("ja") else "en"
    return WORDS[language]["said"][key].format(**values)


class Refusal(ValueError):
    r"""What a visitor cannot have, and why; said in the visitor's language."""

    def __init__(self, key: str, **values: Any):
        super().__init__(WORDS["en"]["said"][key].format(**values))
        self.key, self.values = key, values

    def text(self) -> str:
        r"""The refusal, for the visitor who is being answered."""
        return say(self.key, **self.values)
