"""Cost and spot: what the fleet costs, what for, what spot saves, and what its reclaims take back."""

from metrics.dashboards import shared
from metrics.dashboards.dashboard import Dashboard, Row
from metrics.dashboards.panels import Stat, TimeSeries
from metrics.dashboards.parts import Color, Query, Step, Unit
from metrics.dashboards.promql import events, gauge, quantile_of_events, rate, ratio

_HOUR_S = 3600.0


def dashboard() -> Dashboard:
    return Dashboard(
        uid="penstock-cost",
        title="Penstock / Cost and spot",
        description="What the fleet costs and what for, what spot saves, and what its reclaims take back (docs/cost.md, docs/spot.md).",
        rows=[_now(), _machines(), _requests(), _notices(), _seams()],
        since="now-6h",
    )


def _now() -> Row:
    spend, on_demand = shared.usd_per_hour(), shared.usd_on_demand_per_hour()
    idle = ratio(rate("replica_cost_units_total", state="idle"), rate("replica_cost_units_total"))
    return Row(
        "Now",
        [
            Stat(title="Dollars an hour", description="Price of all replicas that are ready, all their GPUs.", query=Query(spend), unit=Unit.USD, decimals=2, width=4),
            Stat(title="The same on demand", description="What the same machines cost on demand; their own price where nobody has said (replicas[].cost.on_demand_usd_per_hour).",
                 query=Query(on_demand), unit=Unit.USD, decimals=2, width=4),
            Stat(title="Saved", description="Share of the on-demand price that is not paid. It falls when spot replicas are taken away and others stand in.",
                 query=Query((on_demand - spend) / (on_demand > 0)), unit=Unit.RATIO, decimals=1,
                 steps=(Step(float("-inf"), Color.YELLOW), Step(0.001, Color.GREEN)), width=4, empty="no prices"),
            Stat(title="Dollars a million tokens", description="Money of machine time that requests used, over all their tokens, cached ones included. Idle machines are not in it: compare 'Idle'.",
                 query=Query(shared.usd_per_million_tokens()), unit=Unit.USD, decimals=3, width=4, empty="no tokens"),
            Stat(title="Idle", description="Share of the money that went to replicas with nothing of ours on them. High for hours: there are more replicas than needed.",
                 query=Query(idle), unit=Unit.RATIO, decimals=1, steps=(Step(0.5, Color.YELLOW), Step(0.8, Color.RED)), width=4, empty="no prices"),
            Stat(title="Notices in this range", description="Spot and maintenance notices in the time shown above, repeats not counted.",
                 query=Query(events("spot_notices_total", over="$__range")), unit=Unit.COUNT, sparkline=False, width=4, empty="0"),
        ],
    )  # fmt: skip


def _machines() -> Row:
    return Row(
        "Machines",
        [
            TimeSeries(
                title="Dollars an hour, by cost tier",
                description="Price of the replicas that are ready. spot falling while on_demand rises: machines were taken away, and dearer ones stand in.",
                queries=[Query(shared.usd_per_hour("cost_tier"), "{{cost_tier}}")],
                unit=Unit.USD,
                stacked=True,
            ),
            TimeSeries(
                title="Dollars an hour, by GPU",
                description="The same by GPU type. Compare with tokens by GPU in Fleet overview: what a type costs and what it makes.",
                queries=[Query(shared.usd_per_hour("gpu"), "{{gpu}}")],
                unit=Unit.USD,
                stacked=True,
            ),
            TimeSeries(
                title="Spend against all on demand",
                description="What is paid, and what the same machines cost on demand. The gap is what spot and reservations save.",
                queries=[Query(shared.usd_per_hour(), "paid"), Query(shared.usd_on_demand_per_hour(), "all on demand")],
                unit=Unit.USD,
            ),
            TimeSeries(
                title="Busy and idle money",
                description="Dollars an hour of replicas on which something of ours ran, and of those on which nothing did.",
                queries=[Query(rate("replica_cost_units_total", "state") * _HOUR_S, "{{state}}")],
                unit=Unit.USD,
                stacked=True,
            ),
            TimeSeries(
                title="Idle money, by replica",
                description="Dollars an hour that went to an idle replica. The dearest that is idle all day is the first that could go; check 'Replicas wanted' before.",
                queries=[
                    Query(
                        rate("replica_cost_units_total", "replica", "cost_tier", state="idle") * _HOUR_S,
                        "{{replica}} ({{cost_tier}})",
                    )
                ],
                unit=Unit.USD,
                stacked=True,
            ),
            shared.replicas_wanted(),
        ],
    )


def _requests() -> Row:
    return Row(
        "Requests",
        [
            TimeSeries(
                title="Dollars an hour, by model",
                description="Machine time by the model that used it: price x time x share of what ran there.",
                queries=[Query(rate("cost_units_total", "model") * _HOUR_S, "{{model}}")],
                unit=Unit.USD,
                stacked=True,
                model_links=True,
            ),
            TimeSeries(
                title="Dollars an hour, by service tier and class of tenant",
                description="Whose requests the money went to. GET /admin/usage tells it by tenant.",
                queries=[
                    Query(
                        rate("cost_units_total", "service_tier", "tenant_class") * _HOUR_S,
                        "{{service_tier}} / {{tenant_class}}",
                    )
                ],
                unit=Unit.USD,
                stacked=True,
            ),
            TimeSeries(
                title="Dollars a million tokens, by cost tier",
                description="What a token costs on each kind of machine. spot above on_demand: its replicas are slower, or run too empty.",
                queries=[Query(shared.usd_per_million_tokens("cost_tier"), "{{cost_tier}}")],
                unit=Unit.USD,
            ),
            TimeSeries(
                title="Dollars a million tokens, by model",
                description="Larger models, longer prompts and emptier batches cost more a token; a rise without a change of any of these is worth a look.",
                queries=[Query(shared.usd_per_million_tokens("model"), "{{model}}")],
                unit=Unit.USD,
                model_links=True,
            ),
            TimeSeries(
                title="Placements, by cost tier",
                description="Where requests went. Dear tiers with cheap ones idle: the cheap ones would be too late (see decisions: `penstock explain`).",
                queries=[Query(rate("routing_decisions_total", "cost_tier", "reason"), "{{cost_tier}} {{reason}}")],
                unit=Unit.PER_SECOND,
                stacked=True,
            ),
            shared.cache_hits("cost_tier"),
        ],
    )


def _notices() -> Row:
    return Row(
        "Machines that go",
        [
            TimeSeries(
                title="Notices",
                description="Notices by provider and kind, repeats not counted. Many reclaims at once fire PenstockSpotReclaimStorm: have other machines ready.",
                queries=[Query(events("spot_notices_total", "provider", "kind"), "{{provider}} {{kind}}")],
                unit=Unit.COUNT,
                bars=True,
            ),
            TimeSeries(
                title="Drains and notices, by their end",
                description="released: empty in time. cut: something ran when it was to be empty, and moved. overdue: even at the deadline. vanished: the machine went first. Many overdue: raise spot.margin_s.",
                queries=[Query(events("replica_drains_total", "reason", "outcome"), "{{reason}} {{outcome}}")],
                unit=Unit.COUNT,
                bars=True,
            ),
            TimeSeries(
                title="Until a replica was empty",
                description="From the first word of a drain or notice until nothing of ours was on the replica; the slowest twentieth where there were several. A cloud gives 30 to 120 s: near that, lower spot.rebalance_longest_s.",
                queries=[
                    Query(quantile_of_events(0.95, "spot_drain_seconds", "provider", "kind"), "{{provider}} {{kind}}")
                ],
                points=True,
                unit=Unit.SECONDS,
            ),
            TimeSeries(
                title="Time until a replica must be gone",
                description="For replicas with a deadline. One that stays at 0 and is still listed was not taken away after all: `penstock restore` it.",
                queries=[Query(gauge("replica_deadline_seconds", "replica"), "{{replica}}")],
                unit=Unit.SECONDS,
            ),
            TimeSeries(
                title="Ready replicas, by cost tier",
                description="How many machines of each kind are left.",
                queries=[Query(gauge("replica_up", "cost_tier"), "{{cost_tier}}")],
                unit=Unit.NUMBER,
                stacked=True,
            ),
            TimeSeries(
                title="Running, by cost tier",
                description="Where requests run: on what may vanish, and on what will not.",
                queries=[Query(gauge("replica_running", "cost_tier"), "{{cost_tier}}")],
                unit=Unit.NUMBER,
                stacked=True,
            ),
        ],
    )


def _seams() -> Row:
    return Row(
        "What reclaims take back",
        [
            TimeSeries(
                title="Answers whose engine broke off",
                description="resumed: another replica went on, by the engine's token ids (exact) or by text; their clients saw a pause. errored: nobody could, and the client was told (docs/migration.md).",
                queries=[Query(events("stream_interruptions_total", "action", "mode"), "{{action}} {{mode}}")],
                unit=Unit.COUNT,
                bars=True,
            ),
            shared.pauses(),
            TimeSeries(
                title="Tokens prefilled again",
                description="Prompt and answer so far that another engine had to read again, as an answer moved: what a reclaim costs in work. Beside all input tokens it is small, or spot is too restless here.",
                queries=[Query(events("recomputed_tokens_total", "model"), "{{model}}")],
                unit=Unit.TOKENS,
                bars=True,
                model_links=True,
            ),
        ],
    )
