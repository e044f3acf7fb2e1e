"""An answer is broken off at its k-th token, for every k and in every way that a connection can break."""

import asyncio

import pytest

from tests.chaos.fleet import IMPATIENT, fleet, must_continue
from tests.support import faults
from tests.support.engine_process import EngineProcess
from tests.support.fault_proxy import Fault
from tests.support.stream_check import expected_answer
from tests.support.stream_client import Told, chat_body, document_of, plain_body

TOKENS = 10  # words with and without multi-byte characters among them, in most prompts
EVERY_K = range(TOKENS + 1)  # the last: all tokens are there, the usage and [DONE] are not

BREAKS: dict[str, Fault] = {
    "FIN": faults.cut,
    "RST": faults.reset,
    "engine error": faults.engine_error,
    "[DONE] too soon": faults.early_done,
    "clean end": faults.clean_end,
    "silence": faults.hang,
}
PLACES = {
    "in the middle of an event": faults.in_the_middle,
    "in a multi-byte character": faults.in_a_character,
    "before an event's blank line": faults.before_the_blank_line,
}


@pytest.mark.parametrize("kind", list(BREAKS))
async def test_cut_at_every_token(engines: list[EngineProcess], kind: str) -> None:
    """A chat cut after its k-th token is one unbroken, equal answer to its client, for every k; all k at once."""
    async with fleet(engines, **(IMPATIENT if kind == "silence" else {})) as found:
        answers = await asyncio.gather(
            *(found.ask(chat_body(f"Cut {k} {kind}", TOKENS), faults.at_token(k, BREAKS[kind])) for k in EVERY_K)
        )
        for k, answer in enumerate(answers):
            whole = k == TOKENS and kind in {"[DONE] too soon", "clean end"}  # it had its finish reason
            (must_whole_but_usage if whole else must_continue)(answer, k)


def must_whole_but_usage(answer: Told, k: int) -> None:
    """All tokens and the finish reason had come: only the usage is the engine's to tell, and it told none."""
    assert answer.faults in ([], ["usage 0 times, or not last"]), (k, answer.faults)


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("kind", ["FIN", "RST"])
async def test_cut_within_every_token(engines: list[EngineProcess], kind: str, place: str) -> None:
    """Half an event is not forwarded, and none of it is lost or said twice."""
    async with fleet(engines) as found:
        answers = await asyncio.gather(
            *(
                found.ask(chat_body(f"Within {k} été", TOKENS), faults.inside_token(k, PLACES[place], BREAKS[kind]))
                for k in range(TOKENS)
            )
        )
        for k, answer in enumerate(answers):
            must_continue(answer, k)


async def test_plain_completions_cut_at_every_token(engines: list[EngineProcess]) -> None:
    """The same of /v1/completions, which have no role to give them away."""
    async with fleet(engines) as found:
        must_continue(await found.ask(plain_body("Plain", TOKENS), faults.at_token(0, faults.cut)))
        for k in range(1, TOKENS):
            must_continue(await found.ask(plain_body(f"Plain {k}", TOKENS), faults.at_token(k, faults.cut)), k)


async def test_an_answer_cut_again_and_again(engines: list[EngineProcess]) -> None:
    """Two engines in turn break off the same answer; the third one ends it."""
    async with fleet(engines) as found:
        for first in (1, 4, 9):
            for second in (0, 1, 5):
                breaks = [faults.at_token(k, faults.cut) for k in (first, second)]
                must_continue(await found.ask(chat_body(f"Twice {first} {second}", 20), *breaks), (first, second))


async def test_stop_strings_across_the_seam(engines: list[EngineProcess]) -> None:
    """An answer that a stop string ends is ended by it wherever it is cut, in the stop string's own words, too."""
    async with fleet(engines) as found:
        prompt = "Stops"
        said = expected_answer(chat_body(prompt, 12)).text.split(" ")
        body = chat_body(prompt, 30, stop=[f"{said[8]} {said[9]} {said[10][:2]}"])
        must_continue(await found.ask(body))
        for k in range(11):
            must_continue(await found.ask(body, faults.at_token(k, faults.cut)), k)


async def test_documents_broken_at_any_place(engines: list[EngineProcess]) -> None:
    """An answer in one piece that breaks off is asked for again, and whole: nothing of it was forwarded."""
    async with fleet(engines) as found:
        for number, fault in enumerate((faults.half_document(faults.cut), faults.half_document(faults.reset))):
            must_continue(await found.ask(document_of(chat_body(f"Document {number}", 30)), fault))
        must_continue(await found.ask(document_of(plain_body("Plain document", 30)), faults.half_document(faults.cut)))
