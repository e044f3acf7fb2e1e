"""When and where: the in-flight batching scheduler, a pure core.

Invariants (each has a test named after it): reserved blocks are the sum of live leases; a lease is released exactly once; no
replica is given more than its budgets at the moment of a placement; no ticket is lost or served twice; nothing waits that
could be placed now; unknown load is None and an idle fleet always places. No asyncio, no I/O, no clock: `now` is an argument.
"""
