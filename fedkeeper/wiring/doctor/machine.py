"""What this machine offers. Nothing is started that stays, nothing is changed."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import psutil

from fedkeeper.errors import ServiceError
from fedkeeper.fabric.cgroups import Cgroups
from fedkeeper.fabric.preload import find_node
from fedkeeper.weights.binary import find_mongod
from fedkeeper.wiring.doctor.findings import Finding, missing, note, ok, required
from fedkeeper.wiring.doctor.needs import Needs

PYTHON_MIN: Final = (3, 11)
NODE_MIN: Final = 18
MB: Final = 2**20
_TENSORFLOW: Final = "import tensorflow as tf; print(tf.__version__)"
_NEWUSER, _NEWNET, _NEWPID = 0x10000000, 0x40000000, 0x20000000
_UNSHARE: Final = (
    "import ctypes, os, sys; c = ctypes.CDLL(None, use_errno=True);"
    "sys.exit(0 if c.unshare(int(sys.argv[1])) == 0 else ctypes.get_errno() or 1)"
)
_MODULES: Final = {  # module -> the package that brings it; what `fedkeeper` cannot start without is left out
    "functions_framework": "functions-framework",
    "google.cloud.functions_v2": "google-cloud-functions",
    "numpy": "numpy",
    "pymongo": "pymongo",
    "pysyncobj": "pysyncobj",
    "safetensors": "safetensors",
}


def python() -> Finding:
    """The interpreter that runs this, and the functions."""
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < PYTHON_MIN:
        return missing("Python", found, f"use Python {'.'.join(map(str, PYTHON_MIN))} or newer")
    return ok("Python", found)


def packages() -> Finding:
    """What FedKeeper imports when it is needed, except TensorFlow."""
    absent = [package for module, package in _MODULES.items() if not _there(module)]
    if absent:
        return missing("packages", f"not there: {', '.join(absent)}", f"pip install {' '.join(absent)}")
    return ok("packages", "all there")


def tensorflow(needs: Needs, *, timeout_s: float) -> Finding:
    """Whether it can be imported, in a process of its own: it takes seconds, and some processors cannot."""
    way_out = "pip install 'tensorflow>=2.19' into this Python"
    if not _there("tensorflow"):
        return required("TensorFlow", "not installed", way_out, needed=needs.tensorflow)
    try:
        done = _run([sys.executable, "-c", _TENSORFLOW], timeout_s)
    except subprocess.TimeoutExpired:
        way_out = "is the machine very busy? give the doctor a longer --timeout"
        return required("TensorFlow", f"not imported in {timeout_s:g} s", way_out, needed=needs.tensorflow)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1][:200]
        return required("TensorFlow", f"cannot be imported: {said}", way_out, needed=needs.tensorflow)
    return ok("TensorFlow", done.stdout.strip())


def mongod(needs: Needs) -> Finding:
    """One that starts here, for `mongo_config.embedded`."""
    try:
        path = find_mongod()
    except ServiceError as exc:
        return required("mongod", str(exc), exc.hint, needed=needs.mongod)
    return ok("mongod", path)


def node(*, timeout_s: float) -> Finding:
    """For functions in JavaScript on the embedded OpenWhisk; those of FedKeeper are in Python."""
    try:
        path = find_node()
        done = _run([path, "--version"], timeout_s)
    except ServiceError as exc:
        return note("Node.js", "not there", f"only for functions in JavaScript: {exc.hint}")
    except subprocess.TimeoutExpired:
        return note("Node.js", f"no answer in {timeout_s:g} s", "only for functions in JavaScript")
    version = done.stdout.strip()
    major = version.removeprefix("v").partition(".")[0]
    if done.returncode or not major.isdecimal() or int(major) < NODE_MIN:
        way_out = f"only for functions in JavaScript: install {NODE_MIN} or newer"
        return note("Node.js", f"{version or 'does not start'} ({path})", way_out)
    return ok("Node.js", f"{version} ({path})")


def processors() -> Finding:
    """Those that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = os.getloadavg()[0]
    found = f"{usable}, load {busy:.1f}"
    if busy > 2 * usable:
        return note("processors", f"{found}: other programs are busy here, so runs take longer")
    return ok("processors", found)


def memory(needs: Needs) -> Finding:
    """Free memory against the least that the config can begin with, and against all that it allows."""
    free_mb = psutil.virtual_memory().available // MB
    limit_mb = _memory_limit_mb()
    found = f"{free_mb} MB free of {psutil.virtual_memory().total // MB} MB"
    if limit_mb is not None:
        found += f", limited to {limit_mb} MB by a cgroup"
        free_mb = min(free_mb, limit_mb)
    if free_mb < needs.memory_mb:
        way_out = f"{needs.memory_mb} MB are needed: end other programs, or lower the functions' memory"
        return missing("memory", found, way_out)
    allowed_mb = min(needs.fabric_mb, needs.at_once_mb)
    if free_mb < allowed_mb:
        way_out = (
            f"functions alive at once may use up to {allowed_mb} MB by their limits; one that trains a small"
            " model uses about 70; lower embedded.memory_mb if the machine starts to swap"
        )
        return note("memory", found, way_out)
    return ok("memory", found)


def budget(needs: Needs) -> Finding | None:
    """embedded.memory_mb against the functions' limits. None without embedded platforms."""
    if not needs.fabric:
        return None
    topic = "memory budget"
    found = f"embedded.memory_mb {needs.fabric_mb} MB, largest function {needs.largest_mb} MB"
    if needs.largest_mb > needs.fabric_mb:
        way_out = f"set embedded.memory_mb to {needs.largest_mb} or more, or lower that function's memory"
        return missing(topic, found, way_out)
    if needs.at_once_mb > needs.fabric_mb:
        fit = needs.fabric_mb * needs.at_once // needs.at_once_mb
        way_out = (
            f"about {max(1, fit)} of {needs.at_once} clients run at once, the others wait for them;"
            f" embedded.memory_mb: {needs.at_once_mb} lets all run"
        )
        return note(topic, found, way_out)
    return ok(topic, found)


def disk(needs: Needs) -> Finding:
    """Where the embedded services keep their data, and where logs are written."""
    shown = []
    for folder in dict.fromkeys((needs.folder, needs.logs)):
        place = _existing(folder)
        if not os.access(place, os.W_OK | os.X_OK):
            return missing(
                "disk", f"{place} may not be written", "choose embedded.data_dir and logs.folder elsewhere"
            )
        free_mb = shutil.disk_usage(place).free // MB
        if free_mb < needs.disk_mb:
            way_out = f"{needs.disk_mb} MB are needed: make room, or move embedded.data_dir and logs.folder"
            return missing("disk", f"{free_mb} MB free in {place}", way_out)
        shown.append(f"{free_mb} MB free in {place}")
    return ok("disk", "; ".join(shown))


def open_files(needs: Needs) -> Finding:
    """The limit of one process, which it may raise itself up to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = ["unlimited" if one == resource.RLIM_INFINITY else str(one) for one in (soft, hard)]
    found = f"{shown[0]}, at most {shown[1]}"
    if soft != resource.RLIM_INFINITY and soft < needs.files:
        return missing("open files", found, f"{needs.files} are needed: ulimit -n {needs.files}")
    return ok("open files", found)


def cgroup() -> Finding:
    """Whether the fabric could have the kernel limit its workers: it is tried, and taken away again."""
    with tempfile.TemporaryDirectory(prefix="fedkeeper-doctor-") as folder:
        groups = Cgroups.open(Path(folder))
        try:
            controllers = groups.controllers
        finally:
            groups.close()
    found = f"the kernel limits {' and '.join(controllers)} of workers" if controllers else "none for workers"
    if "memory" in controllers:
        return ok("cgroup", found)
    return note(
        "cgroup",
        found,
        "workers' memory is measured instead, and they are ended a moment later; as root, or in a delegated"
        " cgroup (systemd-run --user --scope -p Delegate=yes), the kernel does it",
    )


def namespaces(*, timeout_s: float) -> Finding:
    """Whether processes can be put into user, network and process namespaces of their own."""
    kinds = {"user": _NEWUSER, "network": _NEWUSER | _NEWNET, "process": _NEWUSER | _NEWPID}
    usable = []
    for name, flags in kinds.items():
        try:
            if _run([sys.executable, "-I", "-S", "-c", _UNSHARE, str(flags)], timeout_s).returncode == 0:
                usable.append(name)
        except (OSError, subprocess.TimeoutExpired):
            continue
    if len(usable) == len(kinds):
        return ok("namespaces", ", ".join(usable))
    return note(
        "namespaces",
        ", ".join(usable) or "none",
        "functions cannot be cut off from the network here (sysctl kernel.unprivileged_userns_clone=1, or"
        " kernel.apparmor_restrict_unprivileged_userns=0)",
    )


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent of it
        return False


def _run(argv: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    place = folder.resolve()
    while not place.is_dir():
        place = place.parent
    return place


def _memory_groups() -> list[Path]:
    """This process's cgroup, of version 1 or 2, where the kernel limits memory."""
    found = []
    try:
        rows = [row.split(":", 2) for row in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    root = Path("/sys/fs/cgroup")
    for number, controllers, path in rows:
        inside = path.lstrip("/")
        if "memory" in controllers.split(","):
            found += [root / "memory" / inside, root / "memory"]
        elif number == "0":
            found += [root / inside, root / "unified" / inside]
    return [one for one in found if one.is_dir()]


def _memory_limit_mb() -> int | None:
    """The kernel's limit on this process's group; None if there is none to be seen."""
    for base in _memory_groups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                text = (base / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal() and int(text) < psutil.virtual_memory().total:
                return int(text) // MB
    return None
