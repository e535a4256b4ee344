"""What the network between keepers costs: echoes between two processes, against a bare asyncio protocol.

    python -m benchmarks.network [--seconds 1.0]

Round trips with one message under way, and MB/s (payload, one direction) with 64 under way, for messages of
100 bytes and of 64 KB. The ratio to the bare protocol of the same run is what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr

from fedkeeper.config.keepers import Tls
from fedkeeper.replication.raft.base import Hello, Message
from fedkeeper.replication.raft.network import Credentials, MutualTls, PeerNetwork, SharedSecret, Unprotected
from tests.replication.raft.certificates import authority

KINDS = ("bare", "unprotected", "secret", "tls")
LOADS = ((100, 1), (100, 64), (65536, 1), (65536, 64))  # bytes, messages under way


class Bare(asyncio.Protocol):
    """Bytes of a known size, back and forth; nothing else."""

    def __init__(self, size: int, echoed: Callable[[int], None] | None = None) -> None:
        self._size = size
        self._echoed = echoed
        self._half = 0

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Send it back, or count what has come back."""
        if self._echoed is None:
            self.transport.write(data)
            return
        whole, self._half = divmod(self._half + len(data), self._size)
        if whole:
            self._echoed(whole)


class Echo:
    """The receiver of either keeper."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.network: PeerNetwork | None = None
        self.echoed: Callable[[int], None] | None = None
        self.up = asyncio.Event()

    def hello(self) -> Hello:
        """A name is enough."""
        return Hello(name=self._name, incarnation="", fresh=True, cluster="", last_index=0, version=1)

    def connected(self, hello: Hello) -> None:
        """Now it can begin."""
        self.up.set()

    def disconnected(self, peer: str) -> None:
        """The other process has ended."""

    def received(self, peer: str, messages: Sequence[Message]) -> None:
        """Send it back, or count what has come back."""
        if self.echoed:
            self.echoed(len(messages))
        elif self.network:
            for message in messages:
                self.network.send(peer, message)


def _credentials(kind: str, name: str, folder: Path) -> Credentials:
    if kind == "secret":
        return SharedSecret(SecretStr("a secret for measurements only"))
    if kind == "tls":
        paths = [folder / f"ca-{name}-{part}.pem" for part in ("ca", "cert", "key")]
        return MutualTls(Tls(ca_file=paths[0], cert_file=paths[1], key_file=paths[2]))
    return Unprotected()


def _open(kind: str, name: str, folder: Path, resolve: Callable[[str], tuple[str, int] | None]) -> Echo:
    echo = Echo(name)
    credentials = _credentials(kind, name, folder)
    echo.network = PeerNetwork(name, bind=("127.0.0.1", 0), resolve=resolve, credentials=credentials)
    echo.network.open(echo)
    echo.network.peers(["k1", "k2"])
    return echo


async def serve(kind: str, folder: Path) -> None:
    """The other process: say the port, echo until standard input closes."""
    loop = asyncio.get_running_loop()
    if kind == "bare":
        server = await loop.create_server(lambda: Bare(1), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
    else:
        echo = _open(kind, "k1", folder, lambda name: None)
        assert echo.network
        port = echo.network.address[1]
    print(port, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


async def _measure(
    send: Callable[[int], None], listen: Callable[[Any], None], *, under_way: int, seconds: float
) -> float:
    """Messages a second that came back."""
    done = asyncio.get_running_loop().create_future()
    begun = time.perf_counter()
    end = begun + seconds
    count = 0

    def echoed(number: int) -> None:
        nonlocal count
        count += number
        if time.perf_counter() < end:
            send(number)
        elif not done.done():
            done.set_result(None)

    listen(echoed)
    send(under_way)
    await done
    rate = count / (time.perf_counter() - begun)
    await asyncio.sleep(0.1)  # the rest comes back unheard
    return rate


def _write(bare: Bare, payload: bytes, number: int) -> None:
    bare.transport.write(payload * number)


async def run(kind: str, port: int, folder: Path, seconds: float) -> list[float]:
    """Messages a second under each load."""
    rates = []
    if kind == "bare":
        for size, under_way in LOADS:
            payload = b"x" * size
            _, bare = await asyncio.get_running_loop().create_connection(
                partial(Bare, size, lambda number: None), "127.0.0.1", port
            )
            rates.append(
                await _measure(
                    partial(_write, bare, payload),
                    partial(setattr, bare, "_echoed"),
                    under_way=under_way,
                    seconds=seconds,
                )
            )
            bare.transport.close()
        return rates
    echo = _open(kind, "k2", folder, lambda name: ("127.0.0.1", port))
    network = echo.network
    assert network
    await asyncio.wait_for(echo.up.wait(), 10)
    for size, under_way in LOADS:
        message = {"type": "append", "payload": b"x" * size}

        def send(number: int, message: Message = message) -> None:
            for _ in range(number):
                network.send("k1", message)

        rates.append(
            await _measure(
                send, lambda echoed: setattr(echo, "echoed", echoed), under_way=under_way, seconds=seconds
            )
        )
        echo.echoed = lambda number: None
    await network.close()
    return rates


def main() -> None:
    """Measure all kinds and print the table."""
    structlog.configure(logger_factory=lambda: structlog.PrintLogger(sys.stderr))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.serve, args.folder))
        return
    head = "".join(f"{f'{size} B x {under_way}':>24}" for size, under_way in LOADS)
    print(f"{'messages/s (ratio)':<20}{head}")
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for keeper in ("k1", "k2"):
            authority().files(folder, keeper)
        for kind in KINDS:
            command = [sys.executable, "-m", "benchmarks.network", "--serve", kind, "--folder", name]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
                assert child.stdout
                rates = asyncio.run(run(kind, int(child.stdout.readline()), folder, args.seconds))
                assert child.stdin
                child.stdin.close()
            bare = bare or rates
            cells = (
                f"{rate:.0f} ({rate / reference:.2f})" for rate, reference in zip(rates, bare, strict=True)
            )
            print(f"{kind:<20}" + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
