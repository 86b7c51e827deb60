"""Languages: in which words an explanation is written. The simulator reads them as they are.

English is what every prompt is written in. For another language one sentence is added to what the explainer is told, and
the answers of the worked cases are in that language (`prompts/languages.json`); the evidence stays what it is. A request
in English is the same, to its hash, as if there were no other language.
"""

import json
from dataclasses import replace
from functools import cache
from typing import Any

from pipeline import prompts
from pipeline.errors import SettingsError
from pipeline.ports import Request
from pipeline.provenance import content_hash

ENGLISH = "en"
FILE = "languages.json"


def parse(code: str) -> str:
    """The code of a language in which explanations can be written.

    Raises:
        SettingsError: there are no words of that language.
    """
    if code != ENGLISH and code not in _languages():
        raise SettingsError(f"--language (={code!r}) must be one of {', '.join(sorted({ENGLISH, *_languages()}))}")
    return code


def language_hash(code: str) -> str:
    """The tagged hash of what a language adds to a request."""
    return content_hash([code, _languages()[code]])


def in_language(request: Request, code: str) -> Request:
    """The same request to explain, answered in another language, worked cases included."""
    if code == ENGLISH:
        return request
    return replace(request, messages=tuple((role, _translated(role, text, code)) for role, text in request.messages))


@cache
def _languages() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(prompts.load(FILE).text)
    return found


def _translated(role: str, text: str, code: str) -> str:
    words = _languages()[code]
    if role == "system":
        return f"{text}\n\n{words['instruction']}"
    if role == "assistant":
        answer = json.loads(text)
        for name, said in answer.items():
            if name == "explanation":
                answer[name] = words["answers"][said]
            elif name == "explanations":
                answer[name] = [words["answers"][one] for one in said]
        return prompts.as_data(answer)
    return text
