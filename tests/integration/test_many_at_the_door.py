"""Clients that connect while the event loop is busy: a turn of it lets in many, not one."""

import asyncio
import socket
from contextlib import ExitStack

import uvloop

from router.gateway import Gateway
from router.server import PenstockServer, open_doors
from tests.support.simulated_fleet import fleet_config

CLIENTS = 24
TURNS = 4


def test_a_burst_is_let_in_within_a_few_turns() -> None:
    """On the loop that gateways run on; by one descriptor there were as many turns as clients, a tenth of a second each under load."""

    async def main() -> int:
        config = fleet_config("a")
        doors = open_doors(config.server, 0, None)
        server = PenstockServer(Gateway(config, version="test"), doors, "test", None)
        served = asyncio.get_running_loop().create_task(server.serve(sockets=doors.sockets))
        while not server.started:
            await asyncio.sleep(0.01)
        with ExitStack() as clients:
            for _ in range(CLIENTS):  # the kernel takes them; the loop has no turn meanwhile
                clients.enter_context(socket.create_connection(doors.main.getsockname()[:2]))
            for _ in range(TURNS):
                await asyncio.sleep(0)
            let_in = len(server.server_state.connections)
        server.should_exit = True
        await served
        return let_in

    assert uvloop.run(main()) == CLIENTS
