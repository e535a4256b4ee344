"""The files: what a crash leaves is mended, what is damaged is told, and nothing acknowledged is lost."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fedkeeper.core.model import State
from fedkeeper.errors import JournalDamaged, JournalError, JournalFull, JournalUnconfirmed
from fedkeeper.replication import codec
from fedkeeper.replication import journal as module
from fedkeeper.replication.journal import Journal
from tests.replication import toy


def _lines(first: int, last: int) -> list[bytes]:
    return [codec.encode(toy.command(number)) for number in range(first, last + 1)]


def write(folder, *batches: int, compact_after: int = 0) -> None:
    """Batches of so many commands each, numbered on from 1."""
    with closing(Journal(folder)) as journal:
        journal.load(toy.apply)
        done = 0
        for size in batches:
            journal.append(_lines(done + 1, done + size))
            done += size
            if done == compact_after:
                journal.compact(toy.after(done))


def _read(folder) -> State:
    with closing(Journal(folder)) as journal:
        return journal.load(toy.apply)


def test_what_was_appended_is_there_again(tmp_path):
    """In a new folder, whose parents are made as well."""
    write(tmp_path / "a" / "b", 3, 1, 2)
    assert _read(tmp_path / "a" / "b") == toy.after(6)


def test_the_form_of_a_record_is_fixed(tmp_path):
    """Checksum, number, number of the batch's first, command: other versions must read it."""
    write(tmp_path, 2)
    assert (tmp_path / "journal.jsonl").read_text().splitlines() == [
        'f0a00db8 0 0 {"kind":"Journal","v":1}',
        '714208b4 1 1 {"kind":"StopRun","v":1,"run":"run-1","reason":"\\u00e9","at_ms":1}',
        '054823f4 2 1 {"kind":"StopRun","v":1,"run":"run-2","reason":"\\u00e9\\u00e9","at_ms":2}',
    ]


def test_only_the_owner_may_read(tmp_path):
    """Folder 0700, files 0600, whatever the umask says; a folder that was open to others is closed."""
    folder = tmp_path / "log"
    folder.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        write(folder, 2, compact_after=2)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"journal.jsonl": 0o600, "snapshot.json": 0o600, "lock": 0o600}


def test_a_snapshot_takes_the_place_of_the_commands_in_it(tmp_path):
    """The journal is short again, and goes on."""
    write(tmp_path, 5, 2, compact_after=5)
    assert len((tmp_path / "journal.jsonl").read_bytes().splitlines()) == 3
    with closing(Journal(tmp_path)) as journal:
        assert journal.load(toy.apply) == toy.after(7)
        assert journal.entries == 2


def test_everything_is_on_disk_before_the_next_step(tmp_path, monkeypatch):
    """The order of the system calls is the promise: a power cut may keep any of the later ones only."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def name(fd):
        return Path(f"/proc/self/fd/{fd}").readlink().name

    def spy_fsync(fd):
        calls.append(
            f"sync {name(fd)} {os.fstat(fd).st_size if name(fd).startswith('journal') else ''}".strip()
        )
        fsync(fd)

    def spy_replace(source, target):
        calls.append(f"replace {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    with closing(Journal(tmp_path / "a" / "log")) as journal:
        assert calls == ["sync a", f"sync {tmp_path.name}"]
        journal.load(toy.apply)
        calls.clear()
        journal.append(_lines(1, 2))
        size = (journal.folder / "journal.jsonl").stat().st_size
        assert calls == [f"sync journal.jsonl {size}"]
        calls.clear()
        journal.compact(toy.after(2))
        size = (journal.folder / "journal.jsonl").stat().st_size
    assert calls == [
        "sync snapshot.json.new",
        "replace snapshot.json",
        "sync log",
        f"sync journal.jsonl.new {size}",
        "replace journal.jsonl",
        "sync log",
    ]


# --- crashes ------------------------------------------------------------------------------------


def test_what_a_killed_process_put_in_place_is_durable_before_it_is_relied_upon(tmp_path, monkeypatch):
    """Killed between a rename and the sync of its folder: the next start syncs both first."""
    write(tmp_path, 3, compact_after=3)  # its renames are in the folder, as a killed process leaves them
    synced, fsync = [], os.fsync

    def spy(fd):
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    with closing(Journal(tmp_path)) as journal:
        synced.clear()  # what making the folder synced
        journal.load(toy.apply)
        assert synced == [tmp_path / "journal.jsonl", tmp_path]


def test_a_batch_that_was_cut_off_anywhere_is_cut_off_whole_records_kept(tmp_path):
    """Every length that a killed process may leave opens, with a warning, and can be written on."""
    write(tmp_path, 2, 2)
    path = tmp_path / "journal.jsonl"
    data = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]
    for size in range(ends[2], len(data)):
        path.write_bytes(data[:size])
        kept = sum(end <= size for end in ends) - 1
        with capture_logs() as logs, closing(Journal(tmp_path, fsync=False)) as journal:
            assert journal.load(toy.apply) == toy.after(kept)
            journal.append(_lines(kept + 1, 5))
        assert bool(logs) == (size not in ends)
        assert all(entry["event"] == "torn record cut off" for entry in logs)
        assert _read(tmp_path) == toy.after(5)


def test_blocks_of_the_last_batch_that_a_power_cut_left_empty_are_cut_off(tmp_path):
    """They read as zeros, and later blocks of the same batch may be on disk."""
    write(tmp_path, 2, 4)
    path = tmp_path / "journal.jsonl"
    data = path.read_bytes()
    third = data.index(b"run-4")
    path.write_bytes(data[: third - 10] + bytes(20) + data[third + 10 :])
    with capture_logs() as logs:
        assert _read(tmp_path) == toy.after(3)
    assert "line 5" in logs[0]["place"]


def test_zeros_before_a_later_batch_are_damage(tmp_path):
    """The later batch was begun after this one was acknowledged."""
    write(tmp_path, 2, 2, 1)
    path = tmp_path / "journal.jsonl"
    data = path.read_bytes()
    at = data.index(b"run-4")
    path.write_bytes(data[:at] + bytes(20) + data[at + 20 :])
    with pytest.raises(JournalDamaged, match="line 5"):
        _read(tmp_path)


class Crash(BaseException):
    """The machine stops here."""


@pytest.mark.parametrize("half", [False, True])
def test_a_crash_between_any_two_steps_loses_nothing(tmp_path, monkeypatch, half):
    """Stop before (or half through) the n-th system call, for every n of appends and snapshots."""
    real = {name: getattr(os, name) for name in ("write", "fsync", "replace", "open", "ftruncate", "close")}
    left = [0]

    def counting(name):
        def call(*args, **kwargs):
            if left[0] == 0:
                left[0] = -1
                if half and name == "write":
                    real["write"](args[0], args[1][: len(args[1]) // 2])
                raise Crash
            left[0] -= 1
            return real[name](*args, **kwargs)

        return call

    step = 0
    while True:
        folder = tmp_path / str(step)
        journal = Journal(folder)
        acknowledged = 0
        with monkeypatch.context() as patch:
            left[0] = step
            for name in ("write", "fsync", "replace", "open", "ftruncate"):
                patch.setattr(os, name, counting(name))
            try:
                journal.load(toy.apply)
                for size in (2, 1, 3):
                    journal.append(_lines(acknowledged + 1, acknowledged + size))
                    acknowledged += size
                    journal.compact(toy.after(acknowledged))
                finished = True
            except Crash:
                finished = False
        journal.close()
        with capture_logs():
            assert toy.count(_read(folder)) >= acknowledged
        if finished:
            break
        step += 1
    assert step > 30


# --- damage -------------------------------------------------------------------------------------


def test_any_flipped_bit_is_found(tmp_path):
    """In every byte of every line, the last one too: it was acknowledged, so it is not dropped."""
    write(tmp_path, 1, 1, 1)
    path = tmp_path / "journal.jsonl"
    data = path.read_bytes()
    for at in range(len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :])
        line = data[:at].count(b"\n") + 1
        start = data.rfind(b"\n", 0, at) + 1
        with pytest.raises(JournalDamaged) as caught:
            _read(tmp_path)
        assert str(caught.value).startswith(f"{path}, line {line} (byte {start}): ")
        assert caught.value.hint


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda rows: rows[:2] + rows[3:], "line 3 .* record 3 where 2 belongs"),
        (lambda rows: [*rows, rows[-1]], "line 5 .* record 3 where 4 belongs"),
        (lambda rows: rows[1:], "line 1 .* not the beginning"),
        (lambda rows: [], "line 1 .* not the beginning"),
    ],
)
def test_lines_that_are_missing_or_there_twice_are_found(tmp_path, edit, problem):
    """Each of them checks by itself, so the numbers must tell."""
    write(tmp_path, 3)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(JournalDamaged, match=problem):
        _read(tmp_path)


def test_a_missing_journal_is_not_taken_for_a_new_one(tmp_path):
    """The commands after the snapshot would be lost without a word."""
    write(tmp_path, 3, 1, compact_after=3)
    (tmp_path / "journal.jsonl").unlink()
    with pytest.raises(JournalDamaged, match="missing"):
        _read(tmp_path)


def test_a_missing_snapshot_is_not_taken_for_none(tmp_path):
    """The journal says from where it goes on."""
    write(tmp_path, 3, 1, compact_after=3)
    (tmp_path / "snapshot.json").unlink()
    with pytest.raises(JournalDamaged, match="goes on from 3, the snapshot is of 0"):
        _read(tmp_path)


def test_a_damaged_snapshot_is_told(tmp_path):
    """Like any other record; there is nothing to fall back on."""
    write(tmp_path, 3, compact_after=3)
    path = tmp_path / "snapshot.json"
    path.write_bytes(path.read_bytes().replace(b"chain", b"chaim"))
    with pytest.raises(JournalDamaged, match=r"snapshot\.json, line 1 \(byte 0\): the checksum is wrong"):
        _read(tmp_path)


def test_an_older_journal_beside_a_newer_snapshot_is_begun_anew(tmp_path):
    """As after restoring only one of the two: everything the journal had is in the snapshot."""
    write(tmp_path, 2)
    old = (tmp_path / "journal.jsonl").read_bytes()
    with closing(Journal(tmp_path)) as journal:
        journal.load(toy.apply)
        journal.append(_lines(3, 5))
        journal.compact(toy.after(5))
    (tmp_path / "journal.jsonl").write_bytes(old)
    with closing(Journal(tmp_path)) as journal:
        assert journal.load(toy.apply) == toy.after(5)
        journal.append(_lines(6, 6))
    assert _read(tmp_path) == toy.after(6)


def test_a_record_that_the_machine_cannot_apply_is_named(tmp_path):
    """The promise that it never raises was broken by another version: say where, and by what."""
    write(tmp_path, 2)
    with closing(Journal(tmp_path)) as journal, pytest.raises(JournalError, match=r"line 2 .*StopRun.*Zero"):
        journal.load(lambda state, command: 1 / 0)


# --- the disk -----------------------------------------------------------------------------------


def test_a_folder_is_shared_by_no_two(tmp_path):
    """The second one learns who has it."""
    with closing(Journal(tmp_path)), pytest.raises(JournalError, match=f"by process {os.getpid()}"):
        Journal(tmp_path)
    Journal(tmp_path).close()


def test_after_a_failed_write_nothing_of_the_batch_is_left(tmp_path, monkeypatch):
    """So the error is definite: those commands did not happen."""
    write(tmp_path, 1)
    with closing(Journal(tmp_path)) as journal:
        journal.load(toy.apply)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_write", _half_then(errno.ENOSPC))
            with pytest.raises(JournalFull) as caught:
                journal.append(_lines(2, 9))
        assert caught.value.definite
    assert _read(tmp_path) == toy.after(1)


def test_a_disk_that_cannot_undo_leaves_it_open_what_happened(tmp_path, monkeypatch):
    """Then the error is not definite, and the next start cuts off what is torn."""
    with closing(Journal(tmp_path)) as journal:
        journal.load(toy.apply)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_write", _half_then(errno.EIO))
            patch.setattr(os, "ftruncate", _raise(errno.EIO))
            with pytest.raises(JournalUnconfirmed) as caught:
                journal.append(_lines(1, 9))
        assert not caught.value.definite
    with capture_logs():
        assert 0 < toy.count(_read(tmp_path)) < 9


def test_a_snapshot_that_cannot_be_written_is_only_reported(tmp_path, monkeypatch):
    """The journal has it all; the space of the attempt is given back."""
    with closing(Journal(tmp_path)) as journal:
        journal.load(toy.apply)
        journal.append(_lines(1, 3))
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(module, "_write", _half_then(errno.ENOSPC))
            journal.compact(toy.after(3))
        assert [entry["event"] for entry in logs] == ["snapshot failed"]
        journal.append(_lines(4, 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", "lock"]
    assert _read(tmp_path) == toy.after(4)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    """With its name, as an error of the journal."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="file"):
        Journal(tmp_path / "file" / "log")


def _raise(number: int):
    def call(*_args):
        raise OSError(number, os.strerror(number))

    return call


def _half_then(number: int):
    def write_half(fd: int, data: bytes) -> None:
        os.write(fd, data[: len(data) // 2])
        raise OSError(number, os.strerror(number))

    return write_half
