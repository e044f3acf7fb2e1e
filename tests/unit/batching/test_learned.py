"""What was learned as a value: it comes back as it was, is bounded, and what cannot be gone by is refused with a reason."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.estimators import CharsPerToken, Estimators, Lengths, OutputLengths
from batching.experience import Experience
from batching.fleet import Fleet
from batching.learned import (
    MAX_BYTES,
    VERSION,
    Figure,
    Learned,
    OfAnswers,
    OfModel,
    OfReplica,
    Unusable,
    merged,
    packed,
    unpacked,
)
from batching.replica import Lifecycle, ReplicaProfile
from batching.request import ReplicaId
from config.schema import ModelKind, Scheduling

NONE = Figure(0.0, 0.0)


def replica(name: str, ttft: Figure, machine: str = "h100", models: tuple[str, ...] = ("m",)) -> OfReplica:
    return OfReplica(ReplicaId(name), machine, list(models), ttft, NONE, NONE, NONE, NONE)


def test_it_comes_back_as_it_was() -> None:
    """Packed and unpacked."""
    learned = Learned(
        [OfModel("m", Figure(3.5, 10))], [OfAnswers("m", -1, {3: 2.5, 90: 1.0}, 40.0)], [replica("a", Figure(2.0, 9))]
    )
    assert unpacked(packed(learned)) == learned


def test_it_is_bounded() -> None:
    """A thousand replicas and models with long histories: what has the most evidence is kept, within what others read."""
    many = range(1000)
    full = dict.fromkeys(range(96), 5.333333)
    learned = Learned(
        [OfModel(f"{'m' * 190}{n}", Figure(3.0, n + 1)) for n in many],
        [OfAnswers(f"{'m' * 190}{n}", 3, full, 10.0) for n in many],
        [replica(f"{'r' * 190}{n}", Figure(2.0, n + 1), models=("m" * 199,) * 4) for n in many],
    )
    body = packed(learned)
    assert len(body) <= MAX_BYTES
    assert unpacked(body).replicas[0].ttft.samples == 1000
    kept = packed(Learned([], learned.answers, [replica(f"r{n}", Figure(2.0, n + 1)) for n in many]))
    assert len(kept) <= MAX_BYTES
    assert {one.replica for one in unpacked(kept).replicas} == {f"r{n}" for n in range(744, 1000)}


UNSOUND = [
    Learned([OfModel("m", Figure(float("nan"), 1))]),
    Learned([OfModel("m", Figure(3.0, float("inf")))]),
    Learned([OfModel("m", Figure(3.0, -1.0))]),
    Learned([OfModel("m", Figure(1e9, 5))]),
    Learned([], [OfAnswers("m", 1, {96: 1.0}, 5.0)]),
    Learned([], [OfAnswers("m", 1, {-1: 1.0}, 5.0)]),
    Learned([], [OfAnswers("m", 1, {5: float("nan")}, 5.0)]),
    Learned([], [OfAnswers("m", 1, {5: 1.0}, float("inf"))]),
    Learned([], [OfAnswers("m", 1, {5: 1.0}, 5.0, {5: -1.0})]),
    Learned([], [], [replica("a", Figure(-2.0, 5))]),
    Learned([], [], [OfReplica(ReplicaId("a"), "h100", ["m"], NONE, NONE, NONE, NONE, Figure(float("nan"), 1))]),
]


@pytest.mark.parametrize("learned", UNSOUND)
def test_what_no_estimator_could_bear_is_refused(learned: Learned) -> None:
    """Not finite, negative, out of range."""
    body = f"penstock-learned/{VERSION}\n".encode() + msgspec.msgpack.encode(learned)
    with pytest.raises(Unusable):
        unpacked(body)


@given(st.binary(max_size=200))
def test_bytes_are_usable_or_refused(body: bytes) -> None:
    """Whatever lies there, nothing else is raised."""
    for whole in (body, f"penstock-learned/{VERSION}\n".encode() + body):
        assert outcome(whole)


def outcome(body: bytes) -> Learned | str:
    try:
        return merged([(0.0, unpacked(body))])
    except Unusable as error:
        return str(error)


def test_the_best_evidenced_weighs_most() -> None:
    """Factors meet at their geometric mean by samples; an hour of age halves what one is worth."""
    found = merged(
        [
            (0.0, Learned([], [], [replica("a", Figure(4.0, 300))])),
            (0.0, Learned([], [], [replica("a", Figure(1.0, 100))])),
        ]
    )
    assert found.replicas[0].ttft.value == pytest.approx(4.0**0.75)
    found = merged(
        [
            (3600.0, Learned([], [], [replica("a", Figure(4.0, 300))])),
            (0.0, Learned([], [], [replica("a", Figure(1.0, 150))])),
        ]
    )
    assert found.replicas[0].ttft == pytest.approx((2.0, 300.0))


def test_histograms_add_up() -> None:
    """Of several gateways, with a mean by answers; machines that are no longer the same are kept apart."""
    found = merged(
        [
            (0.0, Learned([], [OfAnswers("m", 3, {4: 10.0}, 10.0, {4: 5.0})], [replica("a", Figure(2.0, 9), "h100")])),
            (0.0, Learned([], [OfAnswers("m", 3, {4: 10.0, 8: 20.0}, 40.0)], [replica("a", Figure(3.0, 9), "a10")])),
        ]
    )
    assert found.answers == [OfAnswers("m", 3, {4: 20.0, 8: 20.0}, 32.5, {4: 5.0})]
    assert len(found.replicas) == 2


def test_others_answers_are_gone_when_as_many_were_seen_here() -> None:
    """Long ones by hearsay, short ones here: after sixty-four of them nothing is left of the others'."""
    lengths = Lengths()
    lengths.inherit({48: 500.0}, 4096.0, {})
    assert (lengths.quantile(0.9), lengths.mean(), lengths.samples) == (4096, 4096, 64)
    for _ in range(32):
        lengths.add(16)
    assert lengths.mean() == 2056
    for _ in range(32):
        lengths.add(16)
    assert (lengths.quantile(0.99), lengths.mean()) == (16, 16)
    assert lengths.histogram() == ({16: 64.0}, 16.0, {})
    assert lengths.survival(8, 1000)[2] == 0.0


def test_that_answers_were_cut_is_inherited_too() -> None:
    """Others' answers all ran into their bound: to who begins from them they say that another will, too, and that is told on; it fades with them."""
    seen = Lengths()
    for _ in range(400):
        seen.add(600, cut=True)
    begun = Lengths()
    begun.inherit(*seen.histogram())
    assert begun.survival(520, 600) == seen.survival(520, 600) == (1.0,) * 4 + (0.0,) * 2
    assert begun.histogram()[2] == begun.histogram()[0] == {37: 64.0}
    for _ in range(64):
        begun.add(600)
    assert begun.survival(520, 1000)[3] == 0.0
    assert begun.histogram()[2] == {}


def test_who_has_seen_answers_takes_nobody_s() -> None:
    """Of lengths and of characters."""
    lengths, chars = Lengths(), CharsPerToken()
    lengths.add(16)
    lengths.inherit({48: 500.0}, 4096.0, {})
    assert lengths.mean() == 16
    chars.learn("m", chars=20, tokens=10)
    before = chars.prompt_tokens("m", 1000)
    chars.inherit("m", 1.0, 500)
    assert chars.prompt_tokens("m", 1000) == before


def test_little_is_inherited_from_little() -> None:
    """Ten answers are not twenty: the client's bound is what is reckoned with, until ten more were seen here."""
    outputs = OutputLengths(0.9)
    outputs.inherit("m", 12, {16: 10.0}, 16.0, {})
    assert outputs.forecast("m", 4000).reserve == 4000
    for _ in range(10):
        outputs.learn("m", 4000, 16)
    assert outputs.forecast("m", 4000).reserve == 16


def experience(*names: str, models: tuple[str, ...] = ("m",), gpu: str = "A100-80G") -> tuple[Experience, Fleet]:
    fleet = Fleet(Scheduling(), stale_after_s=10)
    for name in names:
        profile = ReplicaProfile(id=ReplicaId(name), models=dict.fromkeys(models, ModelKind.CHAT), gpu=gpu)
        fleet.add(profile, Lifecycle.READY)
    return Experience(fleet, Estimators(output_quantile=0.9)), fleet


def machine(models: tuple[str, ...] = ("m",)) -> str:
    return experience("a", models=models)[0].told().replicas[0].machine


def test_a_factor_proves_itself() -> None:
    """With few samples it is drawn towards 1; no figure leaves an estimator's own range."""
    begun, fleet = experience("a", "b")
    begun.begin(
        Learned([], [], [replica("a", Figure(4.0, 5), machine()), replica("b", Figure(90.0, 10_000), machine())])
    )
    assert fleet[ReplicaId("a")].speed.ttft_factor == pytest.approx(2.0)
    assert fleet[ReplicaId("b")].speed.ttft_factor == 10.0


def test_another_machine_or_model_under_the_name_inherits_nothing() -> None:
    """What an A100 was like says nothing of an H100, nor one model of another."""
    known = Learned([], [], [replica("a", Figure(4.0, 500), machine())])
    for begun, fleet in (experience("a", gpu="H100-80G"), experience("a", models=("other",))):
        begun.begin(known)
        assert fleet[ReplicaId("a")].speed.ttft_factor == 1.0


def test_one_that_says_later_what_it_serves_inherits_then() -> None:
    """A discovered replica has no models before its first look."""
    begun, fleet = experience("a", models=())
    begun.begin(Learned([], [], [replica("a", Figure(4.0, 500), machine())]))
    assert fleet[ReplicaId("a")].speed.ttft_factor == 1.0
    fleet.update(ReplicaProfile(id=ReplicaId("a"), models={"m": ModelKind.CHAT}, gpu="A100-80G"))
    begun.settle()
    assert fleet[ReplicaId("a")].speed.ttft_factor > 3.5


def test_a_margin_begins_near_its_prior() -> None:
    """A KV margin that others drove to its end is taken one deviation of the way."""
    begun, fleet = experience("a")
    prior = fleet[ReplicaId("a")].kv_risk.margin
    far = OfReplica(ReplicaId("a"), machine(), ["m"], NONE, NONE, NONE, Figure(6.0, 500), Figure(200, 500))
    begun.begin(Learned([], [], [far]))
    live = fleet[ReplicaId("a")]
    assert live.kv_risk.margin == pytest.approx(prior + 1)
    assert live.max_num_seqs == 200
