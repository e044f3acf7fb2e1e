"""Who pays for a machine's second: the requests on it, by their part of an engine step; nobody where there is none.

One integral a replica (`_usd_per_weight`: dollars a unit of weight since it was last empty) makes every event O(1): a request owes its
weight times what the integral has grown by. Decides how a second is split (docs/decisions/0010-who-pays-for-a-second.md), not what it
costs or who is billed. Dollars, seconds; a weight is picoseconds of a step by the GPU's priors, whole so that sums are exact.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from batching.bill import NOBODY, Account, Machine
from batching.replica import Lifecycle, ReplicaProfile
from config.gpus import StepModel
from config.schema import CostTier

if TYPE_CHECKING:
    from batching.ledger import LeaseRecord

WHOLE_PRICE: Final = (
    1 << 20
)  # parts of a replica's price, that the gateways which use it have among them (`batching.payers`)
_PICO: Final = 1e12
_UNSEEN: Final = frozenset({Lifecycle.STARTING, Lifecycle.DOWN})  # of a replica that is new


class Spent(NamedTuple):
    """Of one replica, since it was last asked."""

    machine: Machine
    busy_usd: float  # equals the sum of `accounts`
    idle_usd: float
    accounts: dict[Account, float]


@dataclass(slots=True, eq=False)
class _Running:
    """An account's requests on one replica, together."""

    weight: int = 0
    usd: float = 0.0
    since: float = 0.0  # the integral when `usd` was last brought up to date


class Meter:
    """One replica's. Time that goes backwards is no time: it stands still until the clock is where it was."""

    def __init__(self, profile: ReplicaProfile) -> None:
        self.machine = _machine(profile)
        self.weight = 0  # of all that runs
        self._usd_per_s = profile.usd_per_hour / 3600
        self._parts = WHOLE_PRICE
        self._here = False  # it is seen to be there
        self._begun = self._left = False
        self._now = 0.0
        self._usd_per_weight = 0.0
        self._busy_usd = self._idle_usd = 0.0
        self._accounts: dict[Account, _Running] = {}
        self._spent: list[Spent] = []  # under labels that it had before
        self._sequence = self._token = 1
        self._prompt_token = self._prompt_token_context = 0.0
        self._chunk = 1

    def weigh_by(self, step: StepModel, *, batch: int, chunk_tokens: int) -> None:
        """From the next change of a request on. `batch`: sequences that share a step of the machine in use."""
        self._sequence = max(1, round(_PICO * (step.overhead_s + step.weights_s) / batch))
        self._token = max(1, round(_PICO * step.kv_token_s))
        self._prompt_token, self._prompt_token_context = _PICO * step.token_s, _PICO * step.attention_s / 2
        self._chunk = chunk_tokens

    # -- the machine -------------------------------------------------------------------------------------------------

    def begin(
        self, profile: ReplicaProfile, lifecycle: Lifecycle, running: Iterable["LeaseRecord"], now: float
    ) -> None:
        """It joins the fleet, or comes back to it while something still runs there."""
        if not self._begun:
            self._now, self._begun = now, True
        self._advance(now)
        self.reprice(profile, running, now)
        self._left, self._here = False, lifecycle not in _UNSEEN

    def move(self, lifecycle: Lifecycle, now: float) -> None:
        """A machine that is down is not paid for, unless it is reserved."""
        self._advance(now)
        self._here = lifecycle is not Lifecycle.DOWN

    def leave(self, now: float) -> None:
        """It is no longer of the fleet: from now on only what still runs there is paid for."""
        self._advance(now)
        self._left = True

    def reprice(self, profile: ReplicaProfile, running: Iterable["LeaseRecord"], now: float) -> None:
        """From now on. O(1) unless its labels change, too: then what runs is billed under the old ones so far."""
        usd_per_s, machine = profile.usd_per_hour / 3600, _machine(profile)
        if usd_per_s != self._usd_per_s:
            self._advance(now)
            self._usd_per_s = usd_per_s
        if machine != self.machine:
            for record in running:
                self._settle(record, now)
            self._spent.append(self._take(now))
            self.machine = machine

    def pay(self, parts: int, now: float) -> None:
        """So many of `WHOLE_PRICE` are this gateway's to split, from now on."""
        if parts != self._parts:
            self._advance(now)
            self._parts = parts

    @property
    def parts(self) -> int:
        return self._parts

    @property
    def over(self) -> bool:
        """There is nothing more to come."""
        return self._left and not self.weight

    # -- requests ----------------------------------------------------------------------------------------------------

    def open(self, record: "LeaseRecord", now: float) -> None:
        """It pays from now on."""
        if now > self._now:
            self._advance(now)
        record.weight, record.since_usd_per_weight = self._weight(record), self._usd_per_weight
        self._change(record, record.weight)

    def weigh(self, record: "LeaseRecord", now: float) -> None:
        """It was prefilled, or has grown."""
        weight = self._weight(record)
        if weight != record.weight:
            self._settle(record, now)
            self._change(record, weight - record.weight)
            record.weight = weight

    def close(self, record: "LeaseRecord", now: float) -> None:
        """It has ended, whatever became of it: its bill has all of it."""
        self._settle(record, now)
        self._change(record, -record.weight)
        record.weight = 0
        if not self.weight:
            for running in self._accounts.values():  # of no weight: they owe nothing more
                running.since = 0.0
            self._usd_per_weight = 0.0  # it loses digits as it grows

    def take(self, now: float) -> list[Spent]:
        """What was spent since the last time, what runs included; whoever takes it owns it."""
        spent, self._spent = self._spent, []
        return [*spent, self._take(now)]

    def _take(self, now: float) -> Spent:
        self._advance(now)
        for running in self._accounts.values():
            running.usd += (self._usd_per_weight - running.since) * running.weight
            running.since = self._usd_per_weight
        spent = Spent(
            self.machine,
            self._busy_usd,
            self._idle_usd,
            {account: running.usd for account, running in self._accounts.items()},
        )
        self._busy_usd = self._idle_usd = 0.0
        self._accounts = {account: running for account, running in self._accounts.items() if running.weight}
        for running in self._accounts.values():
            running.usd = 0.0
        return spent

    def _advance(self, now: float) -> None:
        passed_s = now - self._now
        if passed_s <= 0.0:
            return
        self._now = now
        usd = passed_s * self._usd_per_s
        if self._parts != WHOLE_PRICE:
            usd *= self._parts / WHOLE_PRICE
        if self.weight:
            self._busy_usd += usd
            self._usd_per_weight += usd / self.weight
        elif not self._left and (self._here or self.machine.cost_tier is CostTier.RESERVED):
            self._idle_usd += usd

    def _settle(self, record: "LeaseRecord", now: float) -> None:
        """Bills what it owes until now."""
        if now > self._now:
            self._advance(now)
        bill, usd_per_weight = record.lease.request.bill, self._usd_per_weight
        if bill is not None and usd_per_weight > record.since_usd_per_weight:
            bill.add(self.machine, (usd_per_weight - record.since_usd_per_weight) * record.weight)
        record.since_usd_per_weight = usd_per_weight

    def _change(self, record: "LeaseRecord", more: int) -> None:
        """The integral is of now."""
        bill, usd_per_weight = record.lease.request.bill, self._usd_per_weight
        account = NOBODY if bill is None else bill.account
        running = self._accounts.get(account)
        if running is None:
            running = self._accounts[account] = _Running()
        running.usd += (usd_per_weight - running.since) * running.weight
        running.since = usd_per_weight
        running.weight += more
        self.weight += more

    def _weight(self, record: "LeaseRecord") -> int:
        """Its part of a step: of what every step costs, of the KV cache that is read, and of the prompt tokens that are computed."""
        request = record.lease.request
        weight = self._sequence * request.sequences + self._token * (request.prompt_tokens + record.emitted_tokens)
        if (prompt := record.prefill_tokens) > 0:
            computed = prompt if prompt < self._chunk else self._chunk
            weight += int(computed * (self._prompt_token + self._prompt_token_context * request.prompt_tokens))
        return weight


class Till:
    """Every meter of a fleet, until its last dollar was taken."""

    def __init__(self) -> None:
        self._meters: list[Meter] = []

    def add(self, meter: Meter) -> None:
        """Once, or again."""
        if meter not in self._meters:
            self._meters.append(meter)

    def take(self, now: float) -> list[Spent]:
        """What was spent since the last time, replica by replica. O(replicas x accounts), not of what runs. For one taker."""
        spent = [row for meter in self._meters for row in meter.take(now)]
        self._meters = [meter for meter in self._meters if not meter.over]
        return spent


def _machine(profile: ReplicaProfile) -> Machine:
    return Machine(profile.id, profile.gpu, profile.cost_tier)
