"""The zygote: a program of one thread that imports what functions need, then forks workers on request.

Started by exec as `python -P zygote.py SOCKET_FD PARENT_PID WORKERS CGROUPS MODULE...`. Speaks JSON
datagrams:
{"fork": true} with three file descriptors (channel, stdout, stderr) -> {"pid", "anonymous_kb"}: a process
that waits at its channel for the order that makes it the worker of a function;
{"end": pid} -> {"status"}: kills that worker and all that descends from it; {"error": text} if it cannot.

It only imports: after any TensorFlow operation in the parent, every forked child hangs at its first one.
It ends, with all its descendants, when the socket closes: also when its parent was killed with -9. What
they had for themselves, in the folder WORKERS and in CGROUPS, bears its mark, and goes with them.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

END_ROUNDS = 200  # of 10 ms
MARK = "FAAS_ZYGOTE"  # environment variable: what the names of our workers' directories and groups begin with
NICE = 5  # functions that train give way to keepers, the store and the fabric on a busy machine


def _sibling(name: str) -> ModuleType:
    """A module of this folder, without putting the folder on `sys.path` where functions would find it."""
    spec = importlib.util.spec_from_file_location(f"_faas_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


containment = _sibling("containment")
processes = _sibling("processes")
frames = _sibling("frames")
serving = _sibling("serving")
RUNTIMES = {
    "openwhisk": _sibling("openwhisk").serve,
    "google": functools.partial(serving.serve, _sibling("google")),
    "openfaas": functools.partial(serving.serve, _sibling("openfaas")),
    "nodejs": _sibling("node").serve,
}


class Zygote:
    """Forks, kills and reaps. Nobody else reaps, so the pids it is told are still those it gave out."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.workers: set[int] = set()
        self.threads = processes.threads()

    def serve(self) -> None:
        """Answer requests until the other side is gone."""
        while True:
            message, fds, _, _ = socket.recv_fds(self.control, frames.DATAGRAM_BYTES_MAX, 3)
            if not message:
                return
            request = json.loads(message)
            try:
                answer = self.fork(fds) if "fork" in request else self.end(request["end"])
            except OSError as exc:  # no memory or no process left to fork: the zygote must survive that
                answer = {"error": str(exc)}
            for fd in fds:
                os.close(fd)
            self.control.send(json.dumps(answer).encode())

    def fork(self, fds: list[int]) -> dict[str, Any]:
        """A new process, or an error when the fork would not be safe."""
        if (threads := processes.threads()) > self.threads:
            return {"error": f"the zygote has {threads} threads, {self.threads} after its imports"}
        zygote = os.getpid()
        data_kb = processes.data_kb(zygote)
        pid = os.fork()
        if pid == 0:
            _become_worker(zygote, data_kb, self.control, fds)
        self.workers.add(pid)
        return {"pid": pid, "anonymous_kb": processes.anonymous_kb(zygote)}

    def end(self, pid: int) -> dict[str, Any]:
        """Kill `pid` and its descendants, those that daemonised too; its wait status."""
        if pid not in self.workers:
            return {"error": f"{pid} is no worker of this zygote"}
        self.workers.discard(pid)
        return {"status": self._sweep(pid)}

    def end_all(self) -> None:
        """Kill everything that descends from this process."""
        self.workers.clear()
        self._sweep(None)

    def _sweep(self, pid: int | None) -> int | None:
        """Kill and reap all children that are no workers (orphans come to us), until there are none."""
        status = None
        for _ in range(END_ROUNDS):
            doomed = self._stop_doomed()
            if not doomed:
                break
            for victim in doomed:
                _signal(victim, signal.SIGKILL)
            time.sleep(0.002)
            for child in doomed:
                with contextlib.suppress(ChildProcessError):
                    reaped, code = os.waitpid(child, os.WNOHANG)
                    if reaped == pid:
                        status = code
        return status

    def _stop_doomed(self) -> set[int]:
        """Stop what is to be killed until no more of it appears: it may fork faster than we can kill."""
        stopped: set[int] = set()
        for _ in range(END_ROUNDS):
            table = processes.parents()
            mine = [child for child, parent in table.items() if parent == os.getpid()]
            doomed = [child for child in mine if child not in self.workers]
            new = {*doomed, *processes.descendants(doomed, table)} - stopped
            if not new:
                break
            for victim in new:
                _signal(victim, signal.SIGSTOP)
            stopped |= new
        return stopped


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _become_worker(zygote: int, data_kb: int, control: socket.socket, fds: list[int]) -> None:
    """Never returns: a worker that got back into the zygote's loop would answer in its name."""
    try:
        control.close()
        os.nice(NICE)
        gc.enable()
        channel = socket.socket(fileno=fds[0])
        channel.set_inheritable(False)
        containment.separate(zygote, fds[1], fds[2])
        order, _ = frames.receive(channel)
        containment.enter(order, data_kb)
        RUNTIMES[order["flavour"]](channel, order, frames)
    except frames.Closed:
        os._exit(0)  # a spare that was not needed
    except BaseException:  # noqa: BLE001 - nothing may get past here, see above
        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def _preload(modules: list[str]) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as exc:
            print(f"not preloaded: {module}: {exc}", flush=True)  # noqa: T201 - into this zygote's log


def _remove_quarters(workers: str, groups: list[str]) -> None:
    """Remove what our workers had. The pool does that as well, if it lives."""
    mark = f"{os.environ[MARK]}-"
    for entry in _entries(workers, mark):
        shutil.rmtree(entry, ignore_errors=True)
    for root in groups:
        for folder in (*_entries(root, mark), root):  # the root goes with the last of all zygotes
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # noqa: PTH106


def _entries(folder: str, mark: str) -> list[str]:
    with contextlib.suppress(OSError):
        return [entry.path for entry in os.scandir(folder) if entry.name.startswith(mark)]
    return []


def main(control_fd: int, parent: int, workers: str, groups: list[str], modules: list[str]) -> None:
    """Import, say so, and serve."""
    containment.set_name("faas-zygote")
    containment.die_with_parent(signal.SIGKILL, parent)  # while importing: there is nobody to clean up yet
    containment.adopt_orphans()
    # Functions bring their own `fedkeeper.runtime`; a checkout of ours must not be what they find.
    root = str(Path(__file__).resolve().parents[3])
    if Path(root).name not in ("site-packages", "dist-packages"):
        sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != root]
    os.environ["HOME"] = os.environ["TMPDIR"]  # Keras writes there when imported
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    started = time.monotonic()
    _preload(modules)
    gc.collect()
    gc.disable()
    gc.freeze()  # so that a collection in a child does not copy every page
    zygote = Zygote(control)

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end of the socket and of the parent come together
        zygote.end_all()
        _remove_quarters(workers, groups)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    containment.die_with_parent(signal.SIGTERM, parent)
    ready = {"ready": os.getpid(), "threads": zygote.threads, "seconds": time.monotonic() - started}
    control.send(json.dumps(ready).encode())
    with contextlib.suppress(ConnectionError):
        zygote.serve()
    stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4].split(os.pathsep), sys.argv[5:])
