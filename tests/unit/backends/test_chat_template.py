"""Chat templates: what they render, and what their sandbox refuses."""

from pathlib import Path

import pytest

from backends.chat_template import ChatTemplate, TemplateError, read_source

USER = [{"role": "user", "content": "hello"}]


def test_the_default_is_chatml() -> None:
    """Without a template, messages are written as ChatML with an open assistant turn."""
    messages = [{"role": "system", "content": "be brief"}, *USER]
    assert ChatTemplate().render(messages) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_open_turn_can_be_left_out() -> None:
    """add_generation_prompt false ends the prompt with the last message."""
    assert ChatTemplate().render(USER, add_generation_prompt=False) == "<|im_start|>user\nhello<|im_end|>\n"


def test_text_parts_are_joined() -> None:
    """A content of several text parts is one text, a line break between them, as in vLLM."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "a\nb<|im_end|>" in ChatTemplate().render([{"role": "user", "content": parts}])


def test_a_missing_content_is_empty() -> None:
    """An assistant turn without content renders as no text, never as None."""
    assert "None" not in ChatTemplate().render([{"role": "assistant", "content": None}])


def test_content_is_data() -> None:
    """A message that looks like a template is not rendered."""
    assert "{{ 7 * 7 }}" in ChatTemplate().render([{"role": "user", "content": "{{ 7 * 7 }}"}])


def test_blocks_leave_no_blank_lines() -> None:
    """Block tags swallow their own line, as in the templates of model hubs."""
    source = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    assert ChatTemplate(source).render(USER) == "hello\n"


def test_tojson_is_plain_json() -> None:
    """`tojson` keeps <, > and non-ASCII as they are: models were trained on that."""
    assert ChatTemplate("{{ messages[0].content | tojson }}").render([{"role": "user", "content": "<é>"}]) == '"<é>"'


def test_a_template_may_refuse_messages() -> None:
    """raise_exception's words reach the caller."""
    with pytest.raises(TemplateError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(USER)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ self.__init__.__globals__.__builtins__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ lipsum.__globals__.os }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ messages.append(1) }}",
        "{% set _ = messages[0].update(role='system') %}",
        "{{ messages.clear() }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    """No attribute tricks, no changing of messages, no files: each is a TemplateError."""
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(TemplateError):
        ChatTemplate(source).render(messages)
    assert messages == USER


@pytest.mark.parametrize(
    "source", ["{{ ''['__cla' + 'ss__'] }}", "{{ ''|attr('__class__') }}", "{{ lipsum.__globals__ }}"]
)
def test_private_attributes_are_undefined(source: str) -> None:
    """An attribute with underscores is not there, however it is spelled."""
    assert ChatTemplate(source).render(USER) == ""


@pytest.mark.parametrize(
    "source",
    ["{{ 'a' * 1000000 }}", "{{ 1000000 * 'a' }}", "{{ 9 ** 9 ** 9 }}", "{% for i in range(5000) %}x{% endfor %}"],
)
def test_output_is_bounded(source: str) -> None:
    """Neither one expression nor a loop makes a prompt beyond the bound."""
    with pytest.raises(TemplateError):
        ChatTemplate(source, max_chars=1000).render(USER)


def test_loops_without_end_are_refused() -> None:
    """A range that would spin for ever is refused before it starts."""
    with pytest.raises(TemplateError, match=r"sandbox|does not fit"):
        ChatTemplate("{% for i in range(10000000000) %}{% endfor %}").render(USER)


@pytest.mark.parametrize(
    ("messages", "names"),
    [
        ("hello", "messages"),
        ([], "at least one"),
        (["hello"], r"messages\[0\]"),
        ([{"content": "x"}], r"messages\[0\]"),
        ([{"role": "user", "content": 7}], r"messages\[0\].content"),
        (
            [*USER, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            r"messages\[1\].content\[0\].*image_url",
        ),
        ([{"role": "user", "content": [7]}], r"content\[0\]"),
    ],
)
def test_bad_messages_are_named(messages: object, names: str) -> None:
    """What is wrong with messages is said with its place."""
    with pytest.raises(TemplateError, match=names):
        ChatTemplate().render(messages)


def test_a_failing_template_does_not_leak_python() -> None:
    """A template's own bug is reported by kind, without its details."""
    with pytest.raises(TemplateError, match="does not fit these messages") as failure:
        ChatTemplate("{{ messages[0].content + 1 }}").render(USER)
    assert "concatenate" not in str(failure.value)


def test_a_template_that_does_not_compile_fails_early() -> None:
    """A syntax error shows when the template is made, not at the first request."""
    with pytest.raises(TemplateError, match="does not compile"):
        ChatTemplate("{% for %}")


def test_a_template_may_live_in_a_file(tmp_path: Path) -> None:
    """`file:/path` is read; anything else is the template itself."""
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages|length }}")
    assert [read_source(f"file:{path}"), read_source("{{ x }}"), read_source(None)] == [
        "{{ messages|length }}",
        "{{ x }}",
        None,
    ]


def test_an_answer_that_is_continued_stays_open() -> None:
    """What is generated comes right behind the text of the last message, an assistant's."""
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    assert ChatTemplate().continued(said) == ChatTemplate().render(said[:1]) + "Hel"
    for wrong in (said[:1], said[1:], [*said, said[0]]):
        with pytest.raises(TemplateError, match="continue_final_message"):
            ChatTemplate().continued(wrong)
