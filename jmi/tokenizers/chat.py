"""A conversation as the text a chat model reads: its own template, as transformers 5.24 renders it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jmi.checks import flag, several, shown
from jmi.errors import ArgumentError, TokenizerError, printable
from jmi.tokenizers.renderer import ask
from jmi.tokenizers.templates import DEFAULT
from jmi.tokenizers.tokenizer import Encoding, Tokenizer

_WITH_TOOLS = "tool_use"
_DEEPEST, _MOST_BITS = 60, 64
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # transformers' own: its length counts where a template measures texts
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclasses.dataclass(frozen=True)
class Chat:
    """A conversation as a chat model reads it.

    Attributes:
      text: with the special tokens that the template writes, so encode it with ``special_tokens=False``.
      generated: (start, end) in characters of what stands in ``{% generation %}`` blocks, which is what the
        model says. None where it is not known: most templates have no such block, or it is in a macro.
    """

    text: str
    generated: tuple[tuple[int, int], ...] | None

    def mask(self, encoding: Encoding) -> np.ndarray:
        """Which tokens are the model's own, bool ``[s]``: those with a character in a generation block.

        Args:
          encoding: ``tokenizer.encode_with_offsets(chat.text, special_tokens=False)``.

        Raises:
          ArgumentError: the template does not say.
        """
        if self.generated is None:
            raise ArgumentError(
                "the template does not mark what is the model's own, by {% generation %} outside of macros; "
                "give another, template="
            )
        within = [any(a < end and start < b for a, b in self.generated) for start, end in encoding.offsets]
        return np.array(within, bool)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool = False,
    **variables: Any,
) -> Chat:
    """A conversation by the model's chat template, equal to transformers' ``apply_chat_template``.

    The text holds the special tokens that the template writes, most often BOS: encode it with
    ``special_tokens=False``, or BOS stands there twice. Special tokens written in a message become special
    tokens, too, as in transformers.

    Templates come from strangers. They run in Jinja's sandbox, in a process of their own that is kept for the
    next call (the first takes a tenth of a second). A text takes at most 10 seconds and 16 million
    characters, and on Linux 1 GiB of memory.

    Args:
      messages: of one conversation, each a dict with a role, and content or what else the template reads.
        What is None is left out. Reasoning may be under reasoning_content, thinking or reasoning.
      template: a name among ``tokenizer.chat_templates``, or a template as text. Without one: "tool_use" if
        there are tools and it has one, else "default".
      tools: their JSON schemas.
      documents: dicts, as the template wants them.
      add_generation_prompt: whether the text ends with the beginning of an answer (transformers: False). By
        default it does, unless the last message is continued. A template may not heed it.
      continue_final_message: end the text within the last message, for the model to continue it.
      variables: others that the template reads, such as ``enable_thinking=False``, or ``bos_token=""``.

    Raises:
      ArgumentError: what the template refuses by ``raise_exception``; messages that are none; tools,
        documents or variables that the template does not read, which transformers ignores.
      TokenizerError: no template, one that is not valid or fails on these messages, or takes too long.

    Example:
      >>> import jmi_models
      >>> turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
      >>> render(jmi_models.load("atlas").tokenizer, [{"role": "user", "content": "Hi"}], template=turns).text
      '<user>Hi'
    """
    rows = _rows("messages", messages)
    if not rows:
        raise ArgumentError("messages is empty: give at least one, such as {'role': 'user', 'content': 'Hi'}")
    rows = [_message(i, row) for i, row in enumerate(rows)]
    continues = flag("continue_final_message", continue_final_message)
    asks = (
        not continues
        if add_generation_prompt is None
        else flag("add_generation_prompt", add_generation_prompt)
    )
    if continues and asks:
        raise ArgumentError("continue_final_message and add_generation_prompt exclude each other; use one")
    last = _tagged(rows[-1]) if continues else ""
    given = {"tools": tools, "documents": documents}
    listed = {name: None if value is None else _rows(name, value) for name, value in given.items()}
    more = {name: _plain(name, value) for name, value in variables.items()}
    said = {"messages": rows, "add_generation_prompt": asks, **listed}
    request = {
        "template": _chosen(tokenizer, template, tools is not None),
        "variables": tokenizer.special_texts | more | said,
        "must_read": [*more, *(name for name, value in given.items() if value is not None)],
    }
    return _chat(ask(request), last if continues else None)


def _chosen(tokenizer: Tokenizer, template: str | None, tools: bool) -> str:
    known = tokenizer.chat_templates
    names = f"it has {printable(sorted(known))}" if known else "it has none"
    if template is None:
        name = _WITH_TOOLS if tools and _WITH_TOOLS in known else DEFAULT
        if name not in known:
            raise TokenizerError(
                f"this tokenizer has no chat template of the name {DEFAULT!r}, {names}; give one by "
                "name or as text, template="
            )
        return known[name]
    if not isinstance(template, str) or (
        template not in known and "{{" not in template and "{%" not in template
    ):
        raise ArgumentError(
            f"template={shown(template)}: give a template as text, or the name of one of this "
            f"tokenizer; {names}"
        )
    return known.get(template, template)


def _rows(name: str, value: Any) -> list[dict[str, Any]]:
    """Dicts in a list, copied as plain data."""
    rows = several(name, value, "dicts")
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ArgumentError(f"{name}[{i}] is {shown(row)}; give a dict")
    return [_plain(f"{name}[{i}]", row) for i, row in enumerate(rows)]


def _message(i: int, row: dict[str, Any]) -> dict[str, Any]:
    row = {key: value for key, value in row.items() if value is not None}
    if not isinstance(row.get("role"), str):
        raise ArgumentError(f"messages[{i}] has no role; give {{'role': 'user', 'content': ...}}")
    reasoning = next((row[key] for key in _REASONING if key in row), None)
    if reasoning is None:
        return row
    return {"thinking": reasoning, **row, "reasoning_content": reasoning}


def _plain(name: str, value: Any, depth: int = 0) -> Any:
    """Texts, numbers, lists and dicts: all that a template may see."""
    if depth > _DEEPEST:
        raise ArgumentError(f"{printable(name)} is nested more than {_DEEPEST} deep; make it flatter")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ArgumentError(
            f"{printable(name)} is a number of more than {_MOST_BITS} bits; give a smaller one"
        )
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(f"{name}[{i}]", each, depth + 1) for i, each in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): _plain(f"{name}[{key!r}]", each, depth + 1) for key, each in value.items()}
    raise ArgumentError(
        f"{printable(name)} is {shown(value)}; give texts, numbers, lists, and dicts by names"
    )


def _tagged(message: dict[str, Any]) -> str:
    """The text of the last message, in which a tag is put behind it."""
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    texts = [block for block in blocks if isinstance(block, dict) and isinstance(block.get("text"), str)]
    holder, key = (texts[-1], "text") if texts else (message, "content")
    if not isinstance(holder.get(key), str):
        raise ArgumentError("the last message has no text to continue; give it content")
    text = str(holder[key])
    holder[key] = text + _TAG
    return text


def _chat(answer: Mapping[str, Any], last: str | None) -> Chat:
    if "unread" in answer:
        names = ", ".join(map(printable, answer["unread"]))
        raise ArgumentError(
            f"the chat template does not read {names}; leave that out, or use another template (it reads "
            f"{printable(', '.join(answer['reads']))})"
        )
    if "refused" in answer:
        raise ArgumentError(f"the chat template refuses these messages: {printable(answer['refused'])}")
    if "failed" in answer:
        raise TokenizerError(
            f"the chat template fails ({answer['failed']}: {printable(answer['message'])}); look whether the "
            "messages have what it reads, or use another, template="
        )
    text, blocks = str(answer["text"]), answer["blocks"] or ()
    text = text if last is None else _cut(text, last)
    spans = tuple((start, min(start + len(said), len(text))) for start, said in blocks)
    return Chat(text, None if answer["blocks"] is None else spans)


def _cut(text: str, last: str) -> str:
    """The text before the tag; where the template took the space that ends the tag, it trims texts."""
    place = text.rfind(_TAG.strip())
    if place < 0 or last.strip() not in text:
        raise ArgumentError("the chat template leaves out the last message, so it cannot be continued")
    return text[:place] if text.startswith(_TAG, place) else text[:place].rstrip()
