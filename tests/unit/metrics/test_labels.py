"""Label values stay bounded whatever clients send."""

from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.labels import OTHER, LabelGuard


def test_only_admitted_values_pass():
    """What nobody configured is `other`; what is discovered later passes from then on."""
    guard = LabelGuard(["llama"])
    assert [guard.fold(name) for name in ("llama", "Llama", "", "gpt")] == ["llama", OTHER, OTHER, OTHER]
    guard.admit(["gpt"])
    assert guard.fold("gpt") == "gpt"


def test_the_cap_keeps_the_first():
    """Beyond the cap values are `other`; those admitted before, and admitted again, still pass."""
    guard = LabelGuard((f"m{i}" for i in range(5)), cap=3)
    guard.admit(["m0", "m9"])
    assert [guard.fold(f"m{i}") for i in (0, 1, 2, 3, 4, 9)] == ["m0", "m1", "m2", OTHER, OTHER, OTHER]


@settings(deadline=None, derandomize=True)
@given(asked=st.lists(st.text(max_size=8), max_size=200), admitted=st.lists(st.text(max_size=8), max_size=50))
def test_asking_never_grows_the_set(asked: list[str], admitted: list[str]):
    """There are never more values than the cap and `other`."""
    guard = LabelGuard(admitted, cap=10)
    assert len({guard.fold(value) for value in asked}) <= 11
    assert {guard.fold(value) for value in asked} <= {*admitted, OTHER}
