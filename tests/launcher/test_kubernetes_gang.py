"""How the pods of a gang find each other, over real connections: with a name server that hangs, and among strangers."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.kubernetes import whereabouts, wire
from launcher.backends.kubernetes.coordinator import Coordinator
from launcher.backends.kubernetes.participant import Participant, gang_of
from launcher.backends.kubernetes.whereabouts import Whereabouts, address_file
from launcher.plan import Step
from launcher.ports import free_port
from launcher.run_folder import RunFolder, write_json
from launcher.step_word import read_word

STEP = Step("train", "", "gang", 2, 1, 0, 1, 2, None, ("python",), {}, 3, 30)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


async def found(place: Whereabouts, most_s: float = 3.0) -> str:
    """The address that the coordinator is reached at from."""
    deadline = time.monotonic() + most_s
    while time.monotonic() < deadline:
        try:
            wire = await place.dial()
        except OSError:
            await asyncio.sleep(0.02)
            continue
        address = wire.own_address
        wire.close()
        return address
    raise AssertionError("the coordinator was not found")


def test_a_name_server_that_hangs_holds_up_nobody(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = socket.getaddrinfo, list[str]()

    def hanging(host: Any, *rest: Any, **more: Any) -> Any:
        if host != "run-master-0":
            return real(host, *rest, **more)
        asked.append(host)
        time.sleep(1.0)
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr(whereabouts.socket, "getaddrinfo", hanging)

    async def find() -> None:
        coordinator = Coordinator(folder, STEP, free_port())
        await coordinator.start()
        # The pod of this name may be reached at an address that its own resolver would not give.
        write_json(address_file(folder, "train"), {"address": "127.0.0.1"})
        begun = time.monotonic()
        assert await found(Whereabouts(folder, "train", "run-master-0", coordinator.port)) == "127.0.0.1"
        assert time.monotonic() - begun < 0.9, "the look-up was waited for"
        assert asked == ["run-master-0"]

    asyncio.run(find())


def test_the_name_serves_where_the_folder_says_nothing_or_what_was(folder: RunFolder) -> None:
    async def find() -> None:
        coordinator = Coordinator(folder, STEP, free_port("127.0.0.1"))
        await coordinator.start()
        for left in ({}, {"address": "127.0.0.2"}):
            write_json(address_file(folder, "train"), left)
            port = coordinator.port if not left else free_port("127.0.0.1")
            place = Whereabouts(folder, "train", "localhost", port)
            if left:
                with pytest.raises(OSError):
                    await place.dial()
            else:
                assert await found(place) in ("127.0.0.1", "::1")

    asyncio.run(find())


def test_a_node_of_another_gang_is_sent_away(folder: RunFolder, tmp_path: Path) -> None:
    """A pod's address may belong to another run's pod the next moment."""

    async def meet() -> None:
        coordinator = Coordinator(folder, STEP, free_port())
        await coordinator.start()
        place = Whereabouts(folder, "train", "localhost", coordinator.port)
        write_json(address_file(folder, "train"), {"address": "127.0.0.1"})
        stranger, own = await place.dial(), await place.dial()
        stranger.send(hello=1, gang=gang_of(RunFolder(tmp_path / "another"), STEP))
        own.send(hello=0, gang=gang_of(folder, STEP))
        assert [message async for message in stranger.messages()] == [], "the connection was closed"
        assert sorted(coordinator.nodes) == [0]
        own.close()

    asyncio.run(asyncio.wait_for(meet(), 10))


def test_a_silent_node_is_named_and_those_that_were_ended_for_it_are_not(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without power closes no connection. What the others end with, once they are told to, is no cause."""
    monkeypatch.setattr(wire, "SILENCE_S", 0.5)
    monkeypatch.setattr(wire, "BEAT_S", 0.1)
    step = replace(STEP, retries=1, grace_s=2)
    said = list[str]()

    async def survivor(own: wire.Wire) -> None:
        async for message in own.messages():
            said.append(read_word(folder, "train").reason)
            if message.get("end") == "kill":
                own.send(exit={"attempt": 0, "code": 137})
            if "over" in message:
                return

    async def lose() -> None:
        coordinator = Coordinator(folder, step, free_port())
        await coordinator.start()
        nodes = [await wire.dial("127.0.0.1", coordinator.port) for _ in range(2)]
        for number, node in enumerate(nodes):
            node.send(hello=number, gang=gang_of(folder, step), pod=f"run-worker-{number}")
        running = asyncio.create_task(coordinator.run())
        async for message in nodes[1].messages():
            assert message["begin"]["attempt"] == 0
            break
        nodes[1]._beats.cancel()
        await survivor(nodes[0])
        assert await running == 1
        nodes[1].close()

    asyncio.run(asyncio.wait_for(lose(), 30))
    lost = "node 1 (run-worker-1) was lost: not heard for 30 s (did its machine lose power or network?)"
    assert lost in said, "it is said before the others are ended"
    assert read_word(folder, "train").reason == lost


# A gang that never is complete


def test_half_a_gang_gives_its_place_back(folder: RunFolder) -> None:
    async def wait() -> None:
        coordinator = Coordinator(folder, STEP, free_port(), start_timeout_s=0.4)
        await coordinator.start()
        place = Whereabouts(folder, "train", "localhost", coordinator.port)
        master = Participant(folder, "", STEP, 0, place, start_timeout_s=60.0)
        codes = await asyncio.gather(coordinator.run(), master.run())
        assert codes == [1, 1], "the operator ends a job whose pods end so, and frees what they held"

    begun = time.monotonic()
    asyncio.run(asyncio.wait_for(wait(), 20))
    assert time.monotonic() - begun >= 0.4
    word = read_word(folder, "train")
    assert (word.state, word.reason) == (
        "FAILED",
        "node 1 did not come within 0 s (kubernetes.start_timeout_s); the pods that waited gave their place back",
    )


def test_a_gang_that_is_complete_in_time_begins(folder: RunFolder) -> None:
    async def wait() -> None:
        coordinator = Coordinator(folder, STEP, free_port(), start_timeout_s=30.0)
        await coordinator.start()
        place = Whereabouts(folder, "train", "localhost", coordinator.port)
        running = asyncio.create_task(coordinator.run())
        wires = [await place.dial() for _ in range(2)]
        for number, node in enumerate(wires):
            node.send(hello=number, gang=gang_of(folder, STEP))
        assert "begin" in await anext(wires[1].messages())
        running.cancel()
        for node in wires:
            node.close()

    asyncio.run(asyncio.wait_for(wait(), 20))


@pytest.mark.parametrize("limit_s", [0.3, 0.0])
def test_a_node_without_a_master_gives_its_place_back(folder: RunFolder, limit_s: float) -> None:
    async def wait() -> int | None:
        nowhere = Whereabouts(folder, "train", "127.0.0.1", free_port("127.0.0.1"))
        node = Participant(folder, "", STEP, 1, nowhere, start_timeout_s=limit_s)
        running = asyncio.create_task(node.run())
        done, _ = await asyncio.wait({running}, timeout=10.0 if limit_s else 1.5)
        running.cancel()
        return running.result() if done else None

    assert asyncio.run(wait()) == (1 if limit_s else None), "0 waits without end"
