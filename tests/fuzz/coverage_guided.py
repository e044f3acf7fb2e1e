"""Fuzzing guided by what each input covers (atheris), with the checks of the Hypothesis properties, without sockets. A program.

    python -m tests.fuzz.coverage_guided -max_total_time=600 -seed=1 FOLDER     # libFuzzer's options; FOLDER keeps the corpus

A failure prints its traceback and leaves the input as `crash-*`; given as an argument, such a file is played again.
"""

import asyncio
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["backends.upstream", "router.openai"]):
    from tests.fuzz import request_reading as requests
    from tests.fuzz import test_fuzz_upstream as checks

MAX_BYTES = 6000  # the longest transcript has some 3,000
_KINDS = 5


def one(data: bytes) -> None:
    """The last bytes choose the check and its cuts, the others are the input: so seeds are transcripts as they stand."""
    choose = atheris.FuzzedDataProvider(data)
    kind = choose.ConsumeIntInRange(0, _KINDS - 1)
    cuts, others = ([choose.ConsumeIntInRange(0, MAX_BYTES) for _ in range(n)] for n in (3, 2))
    chat, strip, choices = choose.ConsumeBool(), choose.ConsumeBool(), choose.ConsumeIntInRange(1, 2)
    raw = choose.ConsumeBytes(choose.remaining_bytes())
    if kind == 0:
        checks.the_splitter.check(raw, cuts)
    elif kind == 1:
        checks.the_chunk_filter.check(raw, cuts, others, chat, strip, choices)
    elif kind == 2:
        checks.the_document_check.check(raw, chat)
    elif kind == 3:
        path = requests.PATHS[choices if chat else 0]
        requests.the_request_reader.check(raw, path, strip, chat)
    else:
        checks.the_http_parser.check(raw, cuts, others)
        checks.the_http_parser_reads_no_body_twice.check(raw)


def requests_as_bytes() -> list[bytes]:
    return [body.encode() for body in requests.BODIES]


def sow(folder: Path) -> None:
    """Real answers, for each check."""
    for number, seed in enumerate([*checks.TRANSCRIPTS, *checks.DOCUMENTS, *checks.RESPONSES, *requests_as_bytes()]):
        for kind in range(_KINDS):
            (folder / f"seed-{number}-{kind}").write_bytes(seed + bytes(13) + bytes([kind]))


def main() -> None:
    folders = [Path(argument) for argument in sys.argv[1:] if Path(argument).is_dir()]
    if folders:
        sow(folders[0])
    with asyncio.Runner() as runner:  # one loop for all inputs: to make one costs more than a check
        asyncio.run = runner.run  # type: ignore[assignment]
        atheris.Setup([sys.argv[0], f"-max_len={MAX_BYTES}", *sys.argv[1:]], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
