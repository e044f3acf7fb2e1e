"""`penstock explain`: the formula adds up, and its words are those of what happened."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from batching.decision_record import DecisionRecord
from batching.policies import BASELINES
from batching.request import ServiceTier
from batching.window import Window
from config.schema import Config, CostTier
from router.cli import build_app
from router.decision_documents import Pseudonyms
from router.decision_file import DecisionFile
from router.explain_text import explain, money, time
from tests.support.decisions import Kept
from tests.support.scheduling import profile, request

CHEAP = profile("cheap", gpu="A100-80G", usd_per_hour=1.0, cost_tier=CostTier.SPOT)
DEAR = profile("dear", usd_per_hour=4.0)


def busy() -> Kept:
    """A spot machine and a dearer one, some answers on their way."""
    kept = Kept(CHEAP, DEAR)
    for number in range(4):
        kept.place(request(f"before{number}", prompt_tokens=400), 0.0)
    return kept


def seconds(text: str) -> float:
    """What `time` printed."""
    value, unit = text.split()
    return float(value) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[unit]


TIME = r"(\d[\d.]* (?:us|ms|s))"


def test_the_formula_adds_up():
    """First token = wait + prefill, prefill = its three parts, a token = step + KV, machine = prefill + share; as printed."""
    kept = busy()
    kept.place(request("r", prompt_tokens=3000, max_output_tokens=200))
    text = explain(kept.last)
    first, wait, prefill = re.search(rf"first token +{TIME} = wait {TIME} .* \+ prefill {TIME}", text).groups()
    assert seconds(first) == pytest.approx(seconds(wait) + seconds(prefill), rel=0.02)
    parts = re.search(rf"prefill: .* {TIME}, attention {TIME}, .* decoding {TIME}", text).groups()
    assert seconds(prefill) == pytest.approx(sum(map(seconds, parts)), rel=0.02)
    token, step, kv = re.search(rf"a token +{TIME} = .*one {TIME} \+ .*KV {TIME}", text).groups()
    assert seconds(token) == pytest.approx(seconds(step) + seconds(kv), rel=0.02)
    machine, prefill, count, one, batch = re.search(
        rf"machine +{TIME} = prefill {TIME} \+ (\d+) tokens x {TIME} / (\d+)", text
    ).groups()
    assert seconds(machine) == pytest.approx(seconds(prefill) + int(count) * seconds(one) / int(batch), rel=0.02)


def test_the_totals_are_the_scheduler_s_own():
    """What is printed of the choice is what placement came to."""
    kept = busy()
    kept.place(request("r", prompt_tokens=3000))
    score, text = kept.last.placement.score, explain(kept.last)
    assert f"first token  {time(score.ttft_s)} = " in text
    assert f"{money(score.usd)} for a thousand such requests" in text
    assert f"r went to {score.replica}: " in text


def test_what_it_was_held_for():
    """Who waited although another replica had room is told of whose cache it waited for."""
    kept = busy()
    kept.place(request("r"))
    assert "though another had room" not in explain(kept.last)
    kept.last.placement.held_for = CHEAP.id
    assert "in the gateway's queue, though another had room, for cheap, which holds more" in explain(kept.last)


def test_choice_and_runner_up_stand_first():
    """Both are spelled out, the others have a line and a verdict each."""
    kept = Kept(CHEAP, DEAR, profile("full", max_num_seqs=1, usd_per_hour=0.01))
    kept.place(request("fills"))
    kept.place(request("r"))
    text = explain(kept.last)
    assert text.index("cheap, the choice") < text.index("dear, the runner-up")
    assert "Candidates: 3 tested, 2 with room" in text
    assert re.search(r"cheap +spot .* chosen\n", text)
    assert re.search(r"dear +on_demand .*\d+% dearer\n", text)
    assert re.search(r"full +on_demand .*no room: 0 sequence slots free\n", text)


def test_why_a_replica_that_goes_took_nothing():
    """How much time it had, and how much was needed; or that nothing long begins there."""
    kept = busy()
    kept.scheduler.set_window(CHEAP.id, Window(3.0), 0.0)
    kept.place(request("r", max_output_tokens=4000))
    assert re.search(
        r"cheap +spot .*no room: it goes in 3.00 s, and 4,000 tokens may take \d+\.\d\d s\n", explain(kept.last)
    )
    kept.scheduler.set_window(CHEAP.id, Window(longest_s=5.0), 0.0)
    kept.place(request("s", max_output_tokens=4000))
    assert "it may have to go soon, and takes nothing that may run longer than 5.00 s" in explain(kept.last)


def test_predicted_stands_beside_actual():
    """With the difference, and what would have been said without learning; only once it is over."""
    kept = busy()
    lease = kept.place(request("r", max_output_tokens=50))
    assert "It runs: no token yet." in explain(kept.last)
    kept.answer(lease, first_s=0.5, last_s=2.5, tokens=41, cached_tokens=0)
    text = explain(kept.last)
    assert "It completed after 2.50 s there, with 41 tokens." in text
    assert re.search(r"first token +\S+ ms +500 ms +\+\d+% ", text)
    assert re.search(r"tokens of the answer +50 +41 +-18% +50", text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"service_tier": ServiceTier.BATCH}, "objective   none: nobody waits for it"),
        ({"sequences": 3}, ", 3 answers"),
        ({"max_output_tokens": None}, "no bound by the client"),
        ({"prompt_chars": 410}, "100 tokens (estimated from its characters)"),
        ({"avoid": frozenset({"dear"})}, "not on dear, which had been tried or were slow"),
        ({"tenant": "alice"}, "tenant alice"),
        ({"arrived_s": -60.0}, "none was sure to be in time, so the one with the earliest first token"),
        ({"prefix_hashes": (1, 2), "prefix_chunk_tokens": 40}, "100 - 80 cached (believed 80, trusted to 100%) = 20"),
    ],
)
def test_what_was_special_is_said(change: dict[str, object], words: str):
    """Tiers, several answers, bounds, estimates, retries, lateness and the prefix cache."""
    kept = Kept(CHEAP, DEAR)
    kept.place(request("before", prefix_hashes=(1, 2), prefix_chunk_tokens=40))
    kept.place(request("r", **change))
    assert words in explain(kept.last)


def test_another_router_gives_no_reasons():
    """Under a baseline there is no formula to print, and it says so."""
    kept = Kept(CHEAP, DEAR, policy=BASELINES["round_robin"](0))
    kept.answer(kept.place(request("r")), first_s=1.0, last_s=2.0, tokens=9)
    text = explain(kept.last)
    assert "another router's rule decides here" in text
    assert "the choice" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 ms"), (4e-8, "under 1 us"), (2.5e-5, "25 us"), (0.0123, "12.3 ms"), (1.5, "1.50 s"), (float("inf"), "no limit")],
)  # fmt: skip
def test_times_are_said_as_people_say_them(value: float, text: str):
    """Three digits and the unit that fits."""
    assert time(value) == text


# -- the command -------------------------------------------------------------------------------------------------------


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(build_app(), ["explain", *map(str, args)])


def recorded(path: Path, *records: DecisionRecord) -> Path:
    file = DecisionFile(path, Config(), Pseudonyms(b"k"), policy="penstock")
    file.write(records, ())
    file.close()
    return path


def test_a_file_is_explained_as_a_gateway_is(tmp_path: Path):
    """By id or `last`; the newest placement of an id that came twice."""
    kept = busy()
    for now in (1.0, 2.0):
        kept.answer(kept.place(request("r", arrived_s=now), now), first_s=now, last_s=now + 1, tokens=3)
    path = recorded(tmp_path / "d.jsonl", *reversed(kept.decisions.recent(limit=2)))
    for words in (("r",), ("last",)):
        result = run(*words, "--file", path)
        assert (result.exit_code, result.stdout) == (0, explain(kept.last) + "\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nope", "--file", "d.jsonl"], "d.jsonl has 1 placements and none of nope; is the id whole?"),
        (["r", "--file", "missing.jsonl"], "No such file or directory; name a readable file"),
        (["r", "--file", "other.csv"], "other.csv:1: no decisions file"),
        (["r", "--url", "http://127.0.0.1:1"], "no gateway answers at http://127.0.0.1:1"),
        (["r", "--url", "nonsense"], "no gateway answers at nonsense"),
    ],
)
def test_what_cannot_be_explained_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str):
    """One line on stderr that says what to do, and no traceback."""
    monkeypatch.chdir(tmp_path)
    kept = busy()
    recorded(Path("d.jsonl"), kept.last)
    Path("other.csv").write_text("a,b\n1,2\n")
    result = run(*args)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.startswith("penstock explain: ")
    assert len(result.stderr.strip().splitlines()) == 1
