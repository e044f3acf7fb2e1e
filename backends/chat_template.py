"""OpenAI messages to a prompt, for engines that take text (Triton): Jinja in a sandbox, its output bounded.

Decides nothing about models: the template is the operator's (`replicas[].models[].chat_template`), else `DEFAULT_TEMPLATE`.
Templates are copied from model hubs, so they are treated as programs of strangers: no attribute tricks, no changes to what they are
given, no output beyond a bound. Messages are data and are never rendered themselves.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

# ChatML (Qwen, Yi, many fine-tunes): the commonest form, and readable by models that were trained on another one.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Four times the 16 MiB body that the front door admits by default: a template repeats markers, it does not multiply a conversation.
MAX_PROMPT_CHARS = 64 * 2**20
_FILE = "file:"


class TemplateError(Exception):
    """The messages cannot be rendered; the text is fit for the client, whose request gets a 400."""


class ChatTemplate:
    """A compiled template. The constructor raises TemplateError for a source that does not compile."""

    __slots__ = ("_max_chars", "_template")

    def __init__(self, source: str | None = None, *, max_chars: int = MAX_PROMPT_CHARS) -> None:
        self._max_chars = max_chars
        environment = _Sandbox(max_chars)
        try:
            self._template = environment.from_string(DEFAULT_TEMPLATE if source is None else source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template does not compile: {error}") from error

    def render(self, messages: object, *, add_generation_prompt: bool = True) -> str:
        """The prompt for a request's `messages`, as they came in its JSON body."""
        variables = {"messages": _checked(messages), "add_generation_prompt": add_generation_prompt}
        pieces: list[str] = []
        room = self._max_chars
        try:
            for piece in self._template.generate(variables):
                room -= len(piece)
                if room < 0:
                    break
                pieces.append(piece)
        except _Raised as error:
            raise TemplateError(str(error)) from error
        except jinja2.exceptions.SecurityError as error:
            raise TemplateError("the model's chat template tried something that its sandbox forbids") from error
        except Exception as error:  # boundary: a template is a program, and may raise whatever a program may
            raise TemplateError(
                f"the model's chat template does not fit these messages ({type(error).__name__})"
            ) from error
        if room < 0:
            raise TemplateError(f"the rendered prompt is longer than {self._max_chars} characters")
        return "".join(pieces)

    def continued(self, messages: object) -> str:
        """The same, ending with the text of the last message, an assistant's: what is generated continues it."""
        checked = _checked(messages)
        last = checked[-1]
        if last["role"] != "assistant" or len(checked) == 1:
            raise TemplateError("`continue_final_message` needs a last message of the assistant, after another one")
        return self.render(checked[:-1]) + str(last["content"])


def read_source(setting: str | None) -> str | None:
    """A `chat_template` setting's Jinja source: itself, or the file that `file:/path` names."""
    if setting is None or not setting.startswith(_FILE):
        return setting
    return Path(setting.removeprefix(_FILE)).read_text("utf-8")


class _Raised(jinja2.TemplateError):
    """The template called `raise_exception`: its own words for what is wrong with the messages."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as Hugging Face's `apply_chat_template` sets it up, so that templates of the hub work unchanged."""

    # One expression may not build what the piecewise bound would see too late.
    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, max_chars: int) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self._max_chars = max_chars
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise jinja2.exceptions.SecurityError("no powers in a chat template")
        for sequence, times in ((left, right), (right, left)):
            repeats = isinstance(sequence, str | list | tuple) and isinstance(times, int)
            if repeats and len(sequence) * times > self._max_chars:
                raise jinja2.exceptions.SecurityError("repetition beyond the bound of a prompt")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: object) -> NoReturn:
    raise _Raised(str(message))


def _tojson(value: object, indent: int | None = None) -> str:
    # Jinja's own escapes <, > and & for HTML; models were trained on plain JSON.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _checked(messages: object) -> list[dict[str, object]]:
    if not isinstance(messages, list) or not messages:
        raise TemplateError("`messages` must be a list with at least one message")
    return [_message(index, message) for index, message in enumerate(messages)]


def _message(index: int, message: object) -> dict[str, object]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TemplateError(f"`messages[{index}]` must be an object with a `role`")
    return {**message, "content": _text(index, message.get("content"))}


def _text(index: int, content: object) -> str:
    if content is None:
        return ""  # an assistant turn that only called tools
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TemplateError(f"`messages[{index}].content` must be a string or a list of parts")
    texts: list[str] = []
    for number, part in enumerate(content):
        if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        raise TemplateError(
            f"`messages[{index}].content[{number}]` is of type {str(kind)[:40]!r}; this model takes text parts only"
        )
    return "\n".join(texts)  # as vLLM joins the text parts of a message
