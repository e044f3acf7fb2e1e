"""What is kept of a stream, and what can be done with it."""

from router.openai.journal import Journal


def journal(room: int = 1000, *, exact: bool = True, why_not: str | None = None) -> Journal:
    return Journal(room_bytes=room, exact=exact, why_not=why_not)


def test_ids_and_text_add_up():
    """Ids and text add up."""
    kept = journal()
    kept.prompted([1, 2, 3])
    kept.said(b"Hel", b"10")
    kept.said(b'lo \\"', b"11,12")
    assert kept.plain_text() == 'Hello "'
    assert (bytes(kept.ids), kept.id_count, kept.prompt_ids) == (b",10,11,12", 3, b"1,2,3")
    assert kept.exact
    assert kept.by_text
    assert kept.usage() == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


def test_ids_wait_for_their_text():
    """Half a character has an id and no text: whoever goes on says it again, and the character comes out whole."""
    kept = journal()
    kept.prompted([1])
    kept.said(b"a", b"10")
    kept.said(None, b"11")
    assert bytes(kept.ids) == b",10"
    kept.said(b"\xc3\xa9", b"12")
    assert bytes(kept.ids) == b",10,11,12"
    kept.said(None, b"13")
    kept.seam()
    kept.said(b"b", b"14")
    assert bytes(kept.ids) == b",10,11,12,14"


def test_nothing_said_is_empty():
    """A role, an empty delta, an id without text: whoever goes on can as well begin."""
    kept = journal()
    kept.prompted([1])
    kept.choice({"delta": {"role": "assistant", "content": ""}})
    kept.said(None, b"5")
    assert kept.empty
    kept.choice({"delta": {"content": "x"}, "token_ids": [7]})
    assert not kept.empty
    assert bytes(kept.ids) == b",5,7"


def test_without_ids_text_must_do():
    """An engine that was asked for ids and tells none, or tells no prompt."""
    kept = journal()
    kept.said(b"a", None)
    assert not kept.exact
    assert kept.by_text
    assert not kept.wants_ids
    told = journal()
    told.said(b"a", b"1")
    assert not told.exact


def test_reasoning_can_be_gone_on_with_by_ids_once_it_is_over():
    """Reasoning can be gone on with by ids once it is over."""
    kept = journal()
    kept.prompted([1])
    kept.choice({"delta": {"reasoning": "hm"}, "token_ids": [4]})
    assert (kept.exact, kept.by_text, kept.reason) == (False, False, "reasoning")
    kept.said(b"So", b"5")
    assert kept.exact
    assert not kept.by_text
    assert bytes(kept.ids) == b",4,5"


def test_tool_calls_and_logprobs_cannot():
    """Tool calls and logprobs cannot."""
    for choice in ({"delta": {"tool_calls": [{"index": 0}]}}, {"delta": {"content": "a"}, "logprobs": {"content": []}}):
        kept = journal()
        kept.prompted([1])
        kept.choice(choice)
        assert not kept.empty
        assert not kept.exact
        assert not kept.by_text


def test_its_room_is_bounded():
    """Ids and the prompt go first; then there is no way on, and nothing is kept."""
    kept = journal(room=40)
    kept.prompted(list(range(10)))
    kept.said(b"x" * 15, b"1,2")
    assert kept.exact
    kept.said(b"y" * 15, b"3,4")
    assert not kept.exact
    assert (kept.prompt_ids, bytes(kept.ids)) == (None, b"")
    assert kept.by_text
    for _ in range(1000):
        kept.said(b"z" * 15, b"3,4")
    assert kept.reason == "journal_overflow"
    assert not kept.by_text
    assert len(kept.text) == 0
    assert not kept.empty


def test_a_prompt_without_sense_is_none():
    """A prompt without sense is none."""
    kept = journal()
    for nonsense in (None, [], "1,2", [1.5], [True], ["1"]):
        kept.prompted(nonsense)
        assert kept.prompt_ids is None
