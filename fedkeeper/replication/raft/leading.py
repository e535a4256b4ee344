"""What a leader sends to each keeper, and what it makes of the answers.

PySyncObj sets the index that it sends next back to what is acknowledged, with whatever is on its way sent
again; its acknowledgements carry no term, so late ones of an earlier leadership count; and it pushes a whole
log at once, by pickle where an entry is large. Here each keeper has a window: so much may be on its way, the
rest waits and goes out together.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Final

from fedkeeper.replication.raft.library import NO_OP
from fedkeeper.replication.raft.snapshots import Entry

if TYPE_CHECKING:
    from fedkeeper.replication.raft.base import Hello
    from fedkeeper.replication.raft.node import RaftNode

MESSAGE_BYTES: Final = 1024 * 1024  # of the entries in one message, or one larger entry
WINDOW_BYTES: Final = 4 * 1024 * 1024  # on their way to one keeper, before more is sent
WINDOW_MESSAGES: Final = 8
ENTRY_OVERHEAD: Final = 64  # bytes of an entry beside its command, about
# How long followers that do not wait for it are not told what is committed: the next entries say it as well,
# and a message of its own costs them and the leader a turn each.
COMMIT_DELAY_S: Final = 0.005


class _Progress:
    """How far one keeper is, as its leader knows."""

    def __init__(self, following: int) -> None:
        self.following = following  # index that is sent next
        self.match = 0  # up to here it has the leader's log, durably
        self.counts = False  # it is no newcomer: for a majority too
        self.probing = True  # where its log and ours part is not known: one message at a time
        self.on_their_way: deque[tuple[int, int]] = deque()  # last index and bytes of each message
        self.commit_told = 0
        self.forwarded = 0  # index of the last entry that it asked for: it waits until that is committed
        self.moved_at = 0.0  # when its answers last brought us forward
        self.welcome = 0  # the entry that was appended for it, a newcomer
        self.welcome_at = 0.0  # when it was last told
        self.snapshot: tuple[int, bytes] | None = None  # being sent: of which entry
        self.snapshot_sent = -1  # up to this byte
        self.snapshot_received = 0


class Leading:
    """One node's part as the leader. Everything is begun anew with each term."""

    def __init__(self, node: RaftNode) -> None:
        self._node = node
        self._targets_of: tuple[frozenset[str], ...] = ()
        self._sorted: list[str] = []  # the names that these give
        self._progress: dict[str, _Progress] = {}
        self._hellos: dict[str, Hello] = {}  # of connections that began while it leads
        self._term = -1  # in which it has begun to lead
        self._snapshot: tuple[int, bytes] = (0, b"")  # the last that was read from the disk
        self._spread: tuple[int, int] | None = None  # last index and commit index that everybody was sent
        self._beats = 0
        self.due_at = inf  # when `spread` has something to say that could wait

    # --- who there is ------------------------------------------------------------------------------------

    def connected(self, hello: Hello) -> None:
        """A new connection: whatever was on its way is lost, and what it has it will have to say again."""
        self._hellos[hello.name] = hello
        self._progress.pop(hello.name, None)
        self._spread = None
        if self._node.leads and hello.name in self._node.other_names:
            self._node.count_for(hello.name, 0)

    def forget(self, name: str) -> None:
        """What `name` once acknowledged counts no longer: it comes anew."""
        self._progress.pop(name, None)
        self._hellos.pop(name, None)

    def begins(self) -> None:
        """It was elected."""
        self._term = self._node.term
        self._progress.clear()
        self._hellos.clear()
        self._spread = None
        self.spread()

    def match_of(self, name: str) -> int:
        """Up to where `name` has this leader's log, for certain."""
        progress = self._progress.get(name)
        return 0 if progress is None else progress.match

    def counts(self, name: str) -> bool:
        """Whether `name` has said to this leader that it is no newcomer."""
        progress = self._progress.get(name)
        return progress is not None and progress.counts

    def has_caught_up(self, name: str, *, entries_max: int) -> bool:
        """Whether `name` counts, and lacks at most so many entries."""
        progress = self._progress.get(name)
        return (
            progress is not None and progress.counts and self._node.last_index - progress.match <= entries_max
        )

    # --- sending -----------------------------------------------------------------------------------------

    def heartbeat(self) -> None:
        """Something for everybody."""
        node = self._node
        now = node.clock()
        if self._term != node.term:
            return  # the library would send its no-op; `begins` does
        self._beats += 1
        quiet = self._beats % 2 == 0  # half as many answers are more than enough to know that they follow
        for name in self._targets():
            progress = self._of(name)
            if (
                progress.on_their_way or progress.snapshot
            ) and now - progress.moved_at > node.timing.silence_max_s:
                self._again(progress)  # messages may have been dropped
                progress.moved_at = now
            if not self._send(name, progress):
                self._send_entries(name, progress, [], quiet=quiet and not progress.probing)

    def spread(self) -> None:
        """New entries, and what is committed by now, to whom they are news."""
        node = self._node
        targets, commit = self._targets(), node.commit_index
        news = (node.last_index, commit)
        due = self.due_at <= node.clock()
        if news == self._spread and not due:
            return
        self._spread = news
        late = False
        for name in targets:
            progress = self._of(name)
            if not self._send(name, progress) and progress.commit_told < commit:
                if due or progress.forwarded > progress.commit_told:
                    self._send_entries(name, progress, [], quiet=True)
                else:
                    late = True
        if not late:
            self.due_at = inf
        elif self.due_at == inf:
            self.due_at = node.clock() + COMMIT_DELAY_S

    def forwarded(self, name: str) -> None:
        """The last entry is one that `name` asked for."""
        self._of(name).forwarded = self._node.last_index

    def _targets(self) -> list[str]:
        node = self._node
        among = (node.other_names, node.membership.learners, node.connected_names)
        if among != self._targets_of:
            self._targets_of = among
            self._spread = None
            self._sorted = sorted((among[0] | among[1]) & among[2])
        return self._sorted

    def _of(self, name: str) -> _Progress:
        progress = self._progress.get(name)
        if progress is None:
            node = self._node
            hello = self._hellos.get(name)
            # Those that were there when it was elected lack its no-op, and mostly nothing else.
            theirs = node.noop_index - 1 if hello is None else hello.last_index
            progress = self._progress[name] = _Progress(max(2, min(theirs, node.last_index) + 1))
            progress.probing = hello is not None
            progress.moved_at = node.clock()
        return progress

    def _send(self, name: str, progress: _Progress) -> bool:
        """As much as the window takes; whether that was anything."""
        node = self._node
        if progress.following <= node.first_index and node.storage.snapshot_index:
            return self._send_snapshot(name, progress)
        sent = False
        while progress.following <= node.last_index and self._has_room(progress):
            entries, size = self._some(progress.following)
            self._send_entries(name, progress, entries, quiet=False)
            progress.following = entries[-1][1] + 1
            progress.on_their_way.append((entries[-1][1], size))
            sent = True
        return sent

    def _has_room(self, progress: _Progress) -> bool:
        waiting = progress.on_their_way
        if progress.probing:
            return not waiting
        return len(waiting) < WINDOW_MESSAGES and sum(size for _, size in waiting) < WINDOW_BYTES

    def _some(self, following: int) -> tuple[list[Entry], int]:
        node = self._node
        entries: list[Entry] = []
        size = 0
        for index in range(following, node.last_index + 1):
            entry = node.entry(index)
            more = len(entry[0]) + ENTRY_OVERHEAD
            if entries and size + more > MESSAGE_BYTES:
                break
            entries.append(entry)
            size += more
        return entries, size

    def _send_entries(self, name: str, progress: _Progress, entries: list[Entry], *, quiet: bool) -> None:
        node = self._node
        before = max(min(progress.following - 1, node.last_index), 1)
        before = max(before, node.first_index)  # one that needs a snapshot gets only heartbeats
        progress.commit_told = node.commit_index
        node.say(
            name,
            {
                "type": "append",
                "term": node.term,
                "commit": node.commit_index,
                "before": before,
                "before_term": node.entry(before)[2],
                "entries": entries,
                "quiet": quiet,  # no answer is wanted
            },
        )

    def _send_snapshot(self, name: str, progress: _Progress) -> bool:
        """The next piece, once the one before has arrived."""
        node = self._node
        if progress.snapshot is None:
            index = node.storage.snapshot_index
            if self._snapshot[0] != index:
                self._snapshot = (index, node.storage.snapshot_bytes())
            progress.snapshot = self._snapshot
            progress.snapshot_sent, progress.snapshot_received = -1, 0
        index, data = progress.snapshot
        offset = progress.snapshot_received
        if progress.snapshot_sent > offset or (offset >= len(data) and progress.snapshot_sent == offset):
            return False
        piece = data[offset : offset + MESSAGE_BYTES]
        progress.snapshot_sent = offset + len(piece)
        node.say(
            name,
            {
                "type": "snapshot",
                "term": node.term,
                "index": index,
                "offset": offset,
                "size": len(data),
                "data": piece,
            },
        )
        return True

    @staticmethod
    def _again(progress: _Progress) -> None:
        """Whatever was on its way is lost: go on from what is certain."""
        progress.following = max(2, progress.match + 1)
        progress.on_their_way.clear()
        progress.probing = True
        progress.snapshot = None

    # --- answers -----------------------------------------------------------------------------------------

    def on_appended(self, peer: str, message: dict[str, Any]) -> None:
        """A follower has compared, and made durable, what it was sent; or could not."""
        if not self._is_answer(peer, message):
            return
        node, progress = self._node, self._of(peer)
        following: int = message["next"]
        if message["newcomer"]:
            self._welcome(peer, progress)
        elif not progress.counts:
            progress.counts = True
        if message["success"] and following - 1 <= node.last_index:
            progress.probing = False
            if following - 1 > progress.match:
                progress.match = following - 1
                progress.moved_at = node.clock()
            progress.following = max(progress.following, following)
            if progress.following <= node.last_index:
                self._spread = None  # there is room for more
            while progress.on_their_way and progress.on_their_way[0][0] <= progress.match:
                progress.on_their_way.popleft()
        elif message["reset"]:
            self._spread = None
            progress.following = max(min(following, node.last_index + 1), progress.match + 1, 2)
            progress.on_their_way.clear()
            progress.probing = True
        if progress.counts and peer in node.other_names:
            node.count_for(peer, progress.match)
            node.heard(peer)
            node.counted = True

    def on_snapshot_ack(self, peer: str, message: dict[str, Any]) -> None:
        """So much of a snapshot has arrived."""
        if not self._is_answer(peer, message):
            return
        node, progress = self._node, self._of(peer)
        self._spread = None
        if progress.counts and peer in node.other_names:
            node.heard(peer)
        if progress.snapshot is None or progress.snapshot[0] != message["index"]:
            return
        index, data = progress.snapshot
        progress.moved_at = node.clock()
        progress.snapshot_received = message["received"]
        if progress.snapshot_sent != message["received"]:
            progress.snapshot_sent = -1
        if message["received"] >= len(data):
            progress.snapshot = None
            progress.following = max(progress.following, index + 1)
            progress.probing = True

    def _is_answer(self, peer: str, message: dict[str, Any]) -> bool:
        """Of this term, to this leader; one of a later term ends its time."""
        node = self._node
        if message["term"] > node.term:
            node.follow(message["term"])
            node.leader = ""
            return False
        return (
            node.leads
            and message["term"] == node.term
            and peer in node.other_names | node.membership.learners
        )

    def _welcome(self, peer: str, progress: _Progress) -> None:
        """What the newcomer has to have before it counts: an entry appended now; see `beginning`."""
        node = self._node
        progress.counts = False
        if not progress.welcome:
            node.append(bytes([NO_OP]))
            progress.welcome = node.last_index
        elif node.clock() < progress.welcome_at + node.timing.silence_max_s:
            return
        progress.welcome_at = node.clock()
        node.beginning.welcome(peer, progress.welcome)
