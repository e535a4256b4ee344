"""How the cost grows, drawn."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.drawing import NO_MATPLOTLIB, can_draw, comparable, draw, flowers, size_label


def row(clients: int, nbytes: int, keepers: int, system: str = "FedKeeper") -> dict[str, object]:
    """Of benchmarks.rounds; Flower's has no floors."""
    floors = {"store floor s": 0.1, "store floor cpu s": 0.1, "average floor s": 0.001}
    figures = {"wall s": clients / 100, "cpu s": keepers + clients / 100}
    case = {"system": system, "clients": clients, "bytes": nbytes, "keepers": keepers}
    return case | figures | (floors if system == "FedKeeper" else {})


ROWS = [
    *(row(clients, 10_000, 3) for clients in (100, 10, 30)),
    *(row(10, nbytes, 3) for nbytes in (100_000, 6_650_000)),
    *(row(100, 10_000, keepers) for keepers in (1, 5)),
    *(row(clients, 10_000, 0, "Flower 1, light clients") for clients in (10, 100)),
    row(10, 10_000, 0, "Flower 1, SuperNodes"),
]


@pytest.mark.parametrize(
    ("axis", "values"),
    [("clients", [10, 30, 100]), ("bytes", [10_000, 100_000, 6_650_000]), ("keepers", [1, 3, 5])],
)
def test_cases_are_compared_that_differ_in_one_thing_only(axis, values):
    """Ours, in order; the same case is in two of the lines."""
    assert [one[axis] for one in comparable(ROWS, axis)] == values


def test_flower_is_beside_the_same_cases_if_it_has_two_of_them():
    """One point makes no line, and Flower has no keepers to differ in."""
    beside = {axis: flowers(ROWS, comparable(ROWS, axis), axis) for axis in ("clients", "bytes", "keepers")}
    assert list(beside["clients"]) == ["Flower 1, light clients"]
    assert [one["clients"] for one in beside["clients"]["Flower 1, light clients"]] == [10, 100]
    assert not beside["bytes"]
    assert not beside["keepers"]


@pytest.mark.parametrize(
    ("nbytes", "shown"), [(10_000, "10 KB"), (6_650_000, "6.65 MB"), (5 * 10**9, "5 GB"), (500, "0.5 KB")]
)
def test_bytes_are_shown_in_the_largest_unit_that_fits(nbytes, shown):
    """As they are written in a case."""
    assert size_label(nbytes) == shown


@pytest.mark.skipif(not can_draw(), reason="matplotlib is not installed (`make bench`)")
def test_there_is_a_drawing_for_each_axis_along_which_cases_differ(tmp_path):
    """A picture each, of some size; nothing is drawn of a single case."""
    made = draw(ROWS, tmp_path)
    assert [path.name for path in made] == ["rounds-clients.png", "rounds-bytes.png", "rounds-keepers.png"]
    for path in made:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert int.from_bytes(content[16:20]) > 1000  # width in its header
    assert draw(ROWS[:1], tmp_path / "one") == []


def test_without_matplotlib_it_says_what_to_install(tmp_path):
    """In a Python that does not see it."""
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    script = (
        "import sys, importlib.util as util; found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'matplotlib' else found(name, *rest)\n"
        "sys.argv = ['drawing', sys.argv[1]]\n"
        "from benchmarks.drawing import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "rows.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == NO_MATPLOTLIB
    assert "`make bench`" in NO_MATPLOTLIB
