from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pydantic import SecretStr

from fedkeeper.errors import ConfigError
from fedkeeper.packaging import build, digest


def write(folder: Path, **files: str) -> Path:
    """Make files below `folder`, given by relative path; return it."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def function(tmp_path: Path) -> Path:
    """A function as FedKeeper's own are laid out."""
    return write(
        tmp_path / "fl_thing",
        **{
            "handler.py": "def handle(x): return x\n",
            "maths.py": "",
            "notes.md": "not code",
            "requirements.txt": "numpy\n",
            "openwhisk/__main__.py": "from handler import handle\n",
            "openwhisk/__pycache__/x.pyc": "",
            "google/main.py": "from handler import handle\n",
            "google/requirements.txt": "numpy\nfunctions-framework\n",
        },
    )


def names(archive: bytes) -> list[str]:
    """What is in the zip, in order."""
    return zipfile.ZipFile(io.BytesIO(archive)).namelist()


def text(archive: bytes, name: str) -> str:
    """One file of the zip."""
    return zipfile.ZipFile(io.BytesIO(archive)).read(name).decode()


def test_the_adapter_the_handler_and_the_runtime_go_in(function: Path) -> None:
    """Top-level Python files and the platform's own folder at the top, fedkeeper.runtime beside them."""
    found = names(build(function, "openwhisk"))
    own = [name for name in found if not name.startswith("fedkeeper/")]
    assert own == ["__main__.py", "handler.py", "maths.py", "requirements.txt"]
    assert {"fedkeeper/__init__.py", "fedkeeper/errors.py", "fedkeeper/runtime/wire.py"} <= set(found)
    assert not any(part in name for name in found for part in ("providers", "pycache", "core"))


def test_the_platforms_own_requirements_win(function: Path) -> None:
    """requirements.txt of the platform's folder replaces the shared one."""
    assert "functions-framework" in text(build(function, "google"), "requirements.txt")
    assert text(build(function, "openwhisk"), "requirements.txt") == "numpy\n"


def test_a_function_in_an_image_of_its_own_carries_no_requirements(function: Path) -> None:
    """OpenWhisk would install them at every cold start, and the image has the packages."""
    assert "requirements.txt" in names(build(function, "openwhisk"))
    assert "requirements.txt" not in names(build(function, "openwhisk", requirements=False))


def test_file_times_and_modes_do_not_change_the_bytes(function: Path) -> None:
    """The same contents give the same zip: else every deployment would look like a new one."""
    first = build(function, "openwhisk")
    os.utime(function / "handler.py", (1, 1))
    (function / "handler.py").chmod(0o600)
    assert build(function, "openwhisk") == first
    (function / "handler.py").write_text("changed")
    assert build(function, "openwhisk") != first


def test_a_missing_adapter_is_named_with_those_that_exist(function: Path) -> None:
    """The error tells which platforms the folder could be packaged for."""
    (function / "google/main.py").unlink()
    (function / "google/requirements.txt").unlink()
    (function / "google").rmdir()
    with pytest.raises(ConfigError, match="'fl_thing' has no adapter for google") as caught:
        build(function, "google")
    assert caught.value.hint == "it has: openwhisk"


def test_an_adapter_folder_without_its_entry_file_is_refused(function: Path) -> None:
    """An empty google/ folder is a mistake, not a package."""
    (function / "google/main.py").unlink()
    with pytest.raises(ConfigError, match=r"has no main\.py"):
        build(function, "google")


@pytest.mark.parametrize(("platform", "entry"), [("openwhisk", "__main__.py"), ("google", "main.py")])
def test_a_single_file_gets_the_name_the_platform_asks_for(tmp_path: Path, platform: str, entry: str) -> None:
    """The ancestor's func_path pointed at one file of any name."""
    write(tmp_path, **{"my_function.py": "def main(args): return args\n"})
    assert text(build(tmp_path / "my_function.py", platform), entry).startswith("def main")


def test_a_users_own_folder_goes_in_whole(tmp_path: Path) -> None:
    """Data and sub-packages too, hidden files and caches not."""
    own = write(
        tmp_path / "mine",
        **{
            "__main__.py": "",
            "pkg/__init__.py": "",
            "table.csv": "1",
            ".env": "SECRET",
            "pkg/__pycache__/a": "",
        },
    )
    found = [name for name in names(build(own, "openwhisk")) if not name.startswith("fedkeeper/")]
    assert found == ["__main__.py", "pkg/__init__.py", "table.csv"]
    with pytest.raises(ConfigError, match="no adapter for google"):
        build(own, "google")


def test_included_files_and_packages_come_to_the_top_level(function: Path, tmp_path: Path) -> None:
    """A user's `module:function` model ships beside the adapter."""
    extra = write(tmp_path, **{"models.py": "", "nets/__init__.py": ""})
    found = names(build(function, "openwhisk", include=[extra / "models.py", extra / "nets"]))
    assert {"models.py", "nets/__init__.py"} <= set(found)


@pytest.mark.parametrize("name", ["handler.py", "__main__.py", "fedkeeper/errors.py"])
def test_two_files_of_one_name_are_refused(function: Path, tmp_path: Path, name: str) -> None:
    """Neither silently wins, whether it is the adapter's or FedKeeper's own."""
    extra = write(tmp_path / "extra", **{name: ""})
    with pytest.raises(ConfigError, match=f"would both be {name}"):
        build(function, "openwhisk", include=[extra / name.split("/", maxsplit=1)[0]])


@pytest.mark.parametrize("source", ["nowhere", "notes.md"])
def test_a_source_that_is_no_function_is_refused(function: Path, source: str) -> None:
    """What is missing, or is neither folder nor Python file, is named."""
    with pytest.raises(ConfigError, match=source):
        build(function / source, "openwhisk")


def test_an_unknown_platform_is_refused(function: Path) -> None:
    """A typo does not make an empty package."""
    with pytest.raises(ConfigError, match="openwisk"):
        build(function, "openwisk")


def test_the_shipped_runtime_imports_alone(function: Path, tmp_path: Path) -> None:
    """The zip on an otherwise empty path gives fedkeeper.runtime.wire, with no other part of FedKeeper."""
    packed = tmp_path / "f.zip"
    packed.write_bytes(build(function, "openwhisk"))
    code = (
        f"import sys; sys.path.insert(0, {str(packed)!r}); import fedkeeper, fedkeeper.runtime.wire as w; "
        "print(fedkeeper.__file__); import importlib.util as u; print(u.find_spec('fedkeeper.providers'))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=60,
    )
    file, missing = done.stdout.split()
    assert file.startswith(str(packed))
    assert missing == "None"


class TestDigest:
    env = {"STORE": SecretStr("mongodb://u:pässword@h"), "B": SecretStr("c")}  # noqa: RUF012

    def test_the_same_inputs_give_the_same_digest(self) -> None:
        """Whatever the order of settings and variables; short enough for a label, lower case."""
        one = digest(b"zip", environment=self.env, memory_mb=256, runtime="")
        other = digest(b"zip", environment=dict(reversed(self.env.items())), runtime="", memory_mb=256)
        assert one == other
        assert len(one) == 40
        assert one == one.lower()

    @pytest.mark.parametrize(
        ("archive", "environment", "settings"),
        [
            (b"zap", env, {"memory_mb": 256}),
            (b"zip", env, {"memory_mb": 512}),
            (b"zip", env, {"memory_mb": 256, "image": "x"}),
            (b"zip", {**env, "STORE": SecretStr("other")}, {"memory_mb": 256}),
            (b"zip", {**env, "MORE": SecretStr("")}, {"memory_mb": 256}),
            (b"zip", {"STORE": env["STORE"]}, {"memory_mb": 256}),
            (b"zip", {"STORE": env["STORE"], "Bc": SecretStr("")}, {"memory_mb": 256}),
        ],
    )
    def test_any_change_changes_it(self, archive, environment, settings) -> None:
        """Code, limits, or a value or name in the environment."""
        assert digest(archive, environment=environment, **settings) != digest(
            b"zip", environment=self.env, memory_mb=256
        )


@pytest.mark.parametrize(
    ("files", "source", "expected"),
    [
        ({"f.js": "exports.main = main;"}, "f.js", ["index.js"]),
        (
            {"f/package.json": "{}", "f/app.js": "", "f/node_modules/dep/index.js": "", "f/.git/x": ""},
            "f",
            ["app.js", "node_modules/dep/index.js", "package.json"],
        ),
        ({"f/openwhisk/index.js": "", "f/notes.md": ""}, "f", ["index.js"]),
    ],
)
def test_a_node_function_goes_in_alone(
    tmp_path: Path, files: dict[str, str], source: str, expected: list[str]
) -> None:
    """A single file as index.js, a package with its dependencies; nothing of Python's."""
    write(tmp_path, **files)
    assert names(build(tmp_path / source, "openwhisk", node=True)) == expected


@pytest.mark.parametrize(
    ("platform", "node", "problem", "hint"),
    [
        ("openwhisk", True, "exports nothing", r"exports\.main = main"),
        ("google", True, "packages no Node.js for google", "leave `runtime` out"),
        ("openwhisk", False, "neither a folder nor a .py file", "nodejs:default"),
    ],
)
def test_a_node_function_that_cannot_run_is_refused(
    tmp_path: Path, platform: str, node: bool, problem: str, hint: str
) -> None:
    """Before it is sent, with the way out."""
    source = write(tmp_path, **{"f.js": "function main() {}"}) / "f.js"
    with pytest.raises(ConfigError, match=problem) as refused:
        build(source, platform, node=node)
    assert re.search(hint, refused.value.hint)


def test_a_python_folder_is_nothing_for_node(function: Path) -> None:
    """`runtime: nodejs:default` and a Python function contradict each other."""
    with pytest.raises(ConfigError, match=r"neither package\.json nor index\.js"):
        build(function, "openwhisk", node=True)
