"""Taking zips apart: what is refused never reaches the disk."""

import io
import os
import stat
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkeeper.fabric import archives
from fedkeeper.fabric.archives import ArchiveRefused, extract, is_binary, write_single_file
from tests.fabric.api.conftest import zipped


def names(folder):
    """What is in it."""
    return [path.name for path in folder.iterdir()]


def with_entry(name, *, mode=0, content=b"x"):
    """A zip with one entry of that name and Unix mode."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as bundle:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        bundle.writestr(entry, content)
    return packed.getvalue()


def test_a_package_comes_out_as_it_went_in(tmp_path):
    """Files, folders and the executable bit; nothing else is left beside it."""
    packed = io.BytesIO(zipped(main__py="x = 1\n"))
    with zipfile.ZipFile(packed, "a") as bundle:
        bundle.mkdir("empty")
        bundle.writestr("package/module.py", "y = 2\n")
        tool = zipfile.ZipInfo("bin/tool")
        tool.external_attr = (stat.S_IFREG | 0o755) << 16
        bundle.writestr(tool, "#!")
    extract(packed.getvalue(), tmp_path / "out")
    assert (tmp_path / "out/main.py").read_text() == "x = 1\n"
    assert (tmp_path / "out/package/module.py").read_text() == "y = 2\n"
    assert (tmp_path / "out/empty").is_dir()
    assert os.access(tmp_path / "out/bin/tool", os.X_OK)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (with_entry("/etc/cron.d/x"), "leads out"),
        (with_entry("../x"), "leads out"),
        (with_entry("a/../../x"), "leads out"),
        (with_entry("a\\..\\x"), "leads out"),
        (with_entry("link", mode=stat.S_IFLNK | 0o777, content=b"/etc/passwd"), "link or a device"),
        (with_entry("fifo", mode=stat.S_IFIFO | 0o600), "link or a device"),
        (with_entry("n" * 300), "too long"),
        (b"PK but no zip", "not a usable zip"),
        (b"", "not a usable zip"),
        (with_entry("a")[:-30], "not a usable zip"),
    ],
)
def test_what_leads_out_or_is_damaged_is_refused_whole(tmp_path, archive, words):
    """Nothing of it stays on disk."""
    with pytest.raises(ArchiveRefused, match=words):
        extract(archive, tmp_path / "out")
    assert names(tmp_path) == []


def test_bombs_are_refused_by_what_they_expand_to(tmp_path, monkeypatch):
    """By count, by announced size, and by real size when the headers lie."""
    monkeypatch.setattr(archives, "EXPANDED_MAX_BYTES", 10_000)
    monkeypatch.setattr(archives, "ENTRIES_MAX", 10)
    with pytest.raises(ArchiveRefused, match="expands to more"):
        extract(with_entry("big", content=b"0" * 10_001), tmp_path / "out")
    with pytest.raises(ArchiveRefused, match="11 entries"):
        extract(zipped(**{f"f{n}": "" for n in range(11)}), tmp_path / "out")
    lying = with_entry("big", content=b"0" * 20_000)
    true_size, small = (20_000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    with pytest.raises(ArchiveRefused):
        extract(lying.replace(true_size, small), tmp_path / "out")
    assert names(tmp_path) == []


def test_a_file_and_a_folder_of_one_name_are_refused(tmp_path):
    """Whichever comes first."""
    for pair in (("a", "a/b"), ("a/b", "a"), ("a", "a")):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as bundle:
            for name in dict.fromkeys(pair):
                bundle.writestr(name, "x")
        if len(set(pair)) == 1:
            with zipfile.ZipFile(packed, "a") as bundle, pytest.warns(UserWarning, match="Duplicate"):
                bundle.writestr(pair[1], "y")
        with pytest.raises(ArchiveRefused):
            extract(packed.getvalue(), tmp_path / "out")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8))
def test_no_damage_makes_it_do_anything_but_extract_or_refuse(tmp_path_factory, damage):
    """Whatever bytes of a zip are changed: the files are in the folder, or ArchiveRefused."""
    root = tmp_path_factory.mktemp("damage")
    archive = bytearray(zipped(main__py="x = 1\n" * 20, helper__py="y = 2\n"))
    for place, value in damage:
        archive[place % len(archive)] = value
    try:
        extract(bytes(archive), root / "out")
    except ArchiveRefused:
        assert names(root) == []
    else:
        assert names(root) == ["out"]


def test_a_single_file_becomes_main(tmp_path):
    """As the platform's runtime stores it."""
    write_single_file("é = 1", tmp_path / "out")
    assert (tmp_path / "out/__main__.py").read_text(encoding="utf-8") == "é = 1"


def test_binary_is_inferred_from_length_and_alphabet_alone():
    """The platform's own trap: a short text can look like base64."""
    assert is_binary("abcd")
    assert is_binary("UEsDBA==")
    assert not is_binary("def main(a): pass")
    assert not is_binary("abc")
    assert not is_binary("")
