"""Every address behind a DNS name as a replica: A and AAAA with a port of ours, or SRV with its own.

Looked up again and again rather than by TTL: resolvers cache, and a name whose machines change must be seen to. `/etc/hosts` is not read.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from backends.discovery.found import Found, NotFit, Tell, name_of, replica_at
from config.discovery import Dns

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

log = logging.getLogger("penstock.discovery")

_LIFETIME_S: Final = 5.0  # of one question, all nameservers and repetitions together
_DNS_PORT: Final = 53
Address = tuple[str, int]


class DnsSource:
    """`run` until cancelled."""

    def __init__(self, config: Dns) -> None:
        self.name = f"dns:{config.name}"
        self._config = config
        self._said = ""  # the last trouble, said once

    async def run(self, tell: Tell) -> None:
        resolver = _resolver(self._config.nameservers)
        task = asyncio.current_task()
        known: frozenset[Address] | None = None
        empty = 0
        while True:
            addresses = await self._look(resolver)
            # dnspython waits with asyncio.wait_for, which before Python 3.12 swallows a cancellation that comes together with the answer.
            if task is not None and task.cancelling():
                raise asyncio.CancelledError
            if addresses is not None:
                empty = 0 if addresses else empty + 1
                believed = bool(addresses) or known is None or empty >= self._config.empty_after
                if believed and addresses != known:
                    known = addresses
                    tell(self._found(addresses))
            await asyncio.sleep(self._config.interval_s)

    async def _look(self, resolver: "Resolver") -> frozenset[Address] | None:
        """None: nobody could say. A name that does not exist has no addresses."""
        from dns.exception import DNSException  # noqa: PLC0415 - an extra
        from dns.resolver import NXDOMAIN, NoAnswer  # noqa: PLC0415

        try:
            found = await (self._services(resolver) if self._config.srv else self._addresses(resolver))
        except (NXDOMAIN, NoAnswer):
            found = frozenset()
            self._say("it has no addresses")
        except (DNSException, OSError) as error:
            self._say(f"no answer, what was known stays: {error}")
            return None
        else:
            self._said = ""
        return found

    async def _addresses(self, resolver: "Resolver") -> frozenset[Address]:
        assert self._config.port is not None
        answers = await resolver.resolve_name(self._config.name, lifetime=_LIFETIME_S)
        return frozenset((address, self._config.port) for address in answers.addresses())

    async def _services(self, resolver: "Resolver") -> frozenset[Address]:
        records = await resolver.resolve(self._config.name, "SRV", search=True, lifetime=_LIFETIME_S)
        return frozenset((record.target.to_text(omit_final_dot=True), record.port) for record in records)

    def _found(self, addresses: Iterable[Address]) -> list[Found]:
        found: dict[str, Found] = {}
        for host, port in sorted(addresses):
            name = name_of(self._config.prefix, f"{host}-{port}" if self._config.srv else host)
            try:
                found.setdefault(name, Found(replica_at(name, host, port, self._config.replica)))
            except NotFit as error:
                self._say(f"{host} makes no replica: {error}")
        return list(found.values())

    def _say(self, trouble: str) -> None:
        if trouble != self._said:
            log.warning("%s: %s", self.name, trouble)
        self._said = trouble


def _resolver(nameservers: tuple[str, ...]) -> "Resolver":
    from dns.asyncresolver import Resolver  # noqa: PLC0415 - an extra
    from dns.nameserver import Do53Nameserver  # noqa: PLC0415

    resolver = Resolver(configure=not nameservers)
    resolver.use_search_by_default = True
    if nameservers:
        resolver.nameservers = [Do53Nameserver(*_host_and_port(one)) for one in nameservers]
    return resolver


def _host_and_port(text: str) -> Address:
    """Of `1.2.3.4`, `1.2.3.4:53`, `::1` or `[::1]:53`."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or (":" in host and not host.startswith("[")):
        return text.strip("[]"), _DNS_PORT
    return host.strip("[]"), int(port)
