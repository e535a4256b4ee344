"""Each fault of PySyncObj that can touch a keeper: our guard, the test of it, and how to take the guard away.

Line numbers are of pysyncobj/syncobj.py 0.3.17 where no other file is named. Wherever that is possible, what
takes the guard away puts the library's own code in its place.
"""

from __future__ import annotations

from functools import partial

from fedkeeper.errors import FedKeeperError
from fedkeeper.replication.raft.applying import Applying
from fedkeeper.replication.raft.beginning import Beginning
from fedkeeper.replication.raft.contents import Contents
from fedkeeper.replication.raft.elections import Elections
from fedkeeper.replication.raft.files import Files
from fedkeeper.replication.raft.followers import Followers
from fedkeeper.replication.raft.leading import Leading
from fedkeeper.replication.raft.library import Raft
from fedkeeper.replication.raft.membership import Membership
from fedkeeper.replication.raft.node import RaftNode
from fedkeeper.replication.raft.proposals import Proposals
from fedkeeper.replication.raft.simulated_disk import SimulatedDisk
from fedkeeper.replication.raft.storage import Storage
from tests.patches import method, together, value
from tests.replication.raft import (
    test_node,
    test_node_beginning,
    test_node_durability,
    test_node_elections,
    test_node_log,
    test_node_membership,
    test_storage_crashes,
    test_storage_damage,
    test_storage_faults,
    unguarded,
)
from tests.replication.raft.folders import JOURNAL
from tests.replication.raft.guarding import NOT_RAISED, Guard

NODE_GUARDS = (
    # Applying.
    Guard(
        fault="a replicated method that raises stops every keeper at that entry, for good (708-729, 586-597)",
        guard="Applying._command: all keepers reject the command alike",
        behaviour=test_node.test_a_machine_that_raises_rejects_the_command_on_every_keeper,
        without=value(Applying, "_command", unguarded.apply_unguarded),
        breaks=ZeroDivisionError,
        match="boom",
    ),
    Guard(
        fault="a callback that raises has its keeper apply the entry twice (718-725)",
        guard="RaftNode.later: callbacks come when the turn is over",
        behaviour=test_node.test_a_callback_that_raises_makes_no_keeper_apply_twice,
        without=value(RaftNode, "later", unguarded.library_calls_back),
        match="the keepers have different states",
    ),
    Guard(
        fault="a keeper that cannot read an entry skips it, and applies the next one twice (708-729)",
        guard="Applying.entry raises: the keeper stops and asks to be upgraded",
        behaviour=test_node.test_a_command_of_a_newer_version_stops_the_keeper_that_cannot_read_it,
        without=method(Applying, "entry", unguarded.library_skips),
        match="isinstance.None, JournalDamaged.",
    ),
    # What followers take, and leaders count.
    Guard(
        fault="a repeated message takes back entries that were acknowledged (995-1010)",
        guard="Followers._take: only what conflicts is cut off",
        behaviour=test_node_log.test_a_repeated_message_takes_nothing_back,
        without=unguarded.library_follows,
        match=".2, 1..",
    ),
    Guard(
        fault="the commit index moves over entries that nobody has compared (1029-1033)",
        guard="Followers._commit: only up to what the message was compared with",
        behaviour=test_node_log.test_a_follower_commits_only_what_was_compared,
        without=method(Followers, "on_append", unguarded.commit_unread),
        match="where . = .*commit_index",
    ),
    Guard(
        fault="false SUCCESS while a snapshot is sent or still being dumped (1021-1035, 1310-1317)",
        guard="Followers.on_append commits nothing if the leader's log does not go on from ours",
        behaviour=test_node_log.test_a_snapshot_on_its_way_commits_nothing_of_the_keepers_own,
        without=unguarded.library_follows,
        match="not True",
    ),
    Guard(
        fault="any snapshot is installed, an older one rolls the state back (1021-1024, 1489-1497)",
        guard="Storage.begin_install and finish: none that is no newer; what follows it in the log stays",
        behaviour=test_node_log.test_an_older_snapshot_changes_nothing,
        without=together(
            value(Storage, "begin_install", unguarded.library_installs),
            method(Storage, "finish", unguarded.library_puts),
        ),
    ),
    Guard(
        fault="acknowledgements carry no term: a late one of an earlier leadership counts (1101-1106)",
        guard="Leading._is_answer: of this term only",
        behaviour=test_node_log.test_acknowledgements_of_another_term_do_not_count,
        without=method(Leading, "_is_answer", unguarded.any_answer),
        match="where . = .*commit_index",
    ),
    Guard(
        fault="a committed entry is replaced with no more than a log line (999-1005)",
        guard="Followers._take refuses: the keeper stops",
        behaviour=test_node_log.test_a_committed_entry_is_never_replaced,
        without=unguarded.library_follows,
        match="isinstance.None, KeeperStopped",
    ),
    # Proposals.
    Guard(
        fault="a callback never comes: the command was lost on its way to a leader that stays (555-566)",
        guard="Proposals.expire: each ends in its time, as unknown",
        behaviour=test_node.test_what_was_forwarded_and_lost_ends_as_unknown_in_time,
        without=value(Proposals, "expire", unguarded.nothing),
        match="assert .. == ",
    ),
    Guard(
        fault="a callback never comes: a snapshot came in the place of the entry (530-532, 717)",
        guard="Proposals.skipped: unknown, at once",
        behaviour=test_node.test_a_keeper_that_takes_a_snapshot_does_not_know_of_its_proposals,
        without=value(Proposals, "skipped", unguarded.nothing),
        match="assert .. == ",
    ),
    Guard(
        fault="commands wait for a leader without a limit of time (507-508)",
        guard="Proposals.propose: refused, for certain",
        behaviour=test_node.test_without_a_leader_a_proposal_is_refused_for_certain,
        without=method(Proposals, "propose", unguarded.library_waits),
        match="assert .. == ",
    ),
    Guard(
        fault="what an old leader's keeper forwards late is taken by the leader of a later term (536-566)",
        guard="Proposals.on_forward: for the leader of one term",
        behaviour=test_node.test_a_forwarded_proposal_whose_leader_has_lost_the_lead_is_refused,
        without=method(Proposals, "on_forward", unguarded.any_term),
        match="assert 1 == 0",
    ),
    Guard(
        fault="reads are of the local state, however old (no read index)",
        guard="RaftNode.barrier goes through the log",
        behaviour=test_node.test_one_that_is_cut_off_answers_no_read,
        without=value(RaftNode, "barrier", unguarded.read_here),
        match="values.State",
    ),
    # Elections.
    Guard(
        fault="no question before an election: one that was cut off deposes a healthy leader (920-923)",
        guard="Elections.before_step: a majority must be without a leader first",
        behaviour=test_node_elections.test_one_that_was_cut_off_deposes_nobody,
        without=value(Elections, "before_step", unguarded.nothing),
        match="assert .* is <",
    ),
    Guard(
        fault="votes are counted by message, whoever sent them (1064-1068)",
        guard="Elections.on_response_vote: one per voter and term",
        behaviour=test_node_elections.test_votes_are_counted_once_per_voter_and_only_in_their_term,
        without=value(Elections, "on_response_vote", unguarded.library_counts_votes),
        match="assert not True",
    ),
    Guard(
        fault="a leader without a majority goes on for half a minute (config.py:57)",
        guard="library.Raft: leaderFallbackTimeout is the longest silence",
        behaviour=test_node_elections.test_a_leader_without_a_majority_steps_down,
        without=method(Raft, "__init__", unguarded.library_falls_back),
        match="Role.LEADER",
    ),
    # Members, and keepers that have forgotten.
    Guard(
        fault="changes of the members are not serialised: its guard is never set (186, 1361-1366)",
        guard="Membership._unfit: one at a time",
        behaviour=test_node_membership.test_changes_are_made_one_at_a_time,
        without=value(Membership, "_unfit", unguarded.nothing),
        match="assert .. == ",
    ),
    Guard(
        fault="an isolated leader shrinks the cluster until it is a majority by itself (1361-1366)",
        guard="Membership._unfit: only with healthy majorities of the old and the new members",
        behaviour=test_node_membership.test_nothing_is_removed_without_a_healthy_majority_of_those_that_stay,
        without=value(Membership, "_unfit", unguarded.nothing),
        match="assert .. == ",
    ),
    Guard(
        fault="a keeper whose disk was wiped votes again, and its acknowledgements count",
        guard="Beginning.counts: not before it has caught up",
        behaviour=test_node_beginning.test_a_newcomer_neither_votes_nor_grants_nor_stands,
        without=value(Beginning, "counts", property(lambda self: self.is_member)),
        match="response_vote",
    ),
    Guard(
        fault="the same, for the majority that a leader counts",
        guard="Beginning.counts, in its acknowledgements",
        behaviour=test_node_beginning.test_a_wiped_keeper_does_not_count_before,
        without=value(Beginning, "counts", property(lambda self: self.is_member)),
        match="assert not True",
    ),
)

DISK_GUARDS = (
    Guard(
        fault="no fsync, of entries, term, vote or dump: a power cut takes what was acknowledged (no call)",
        guard="Storage.sync before anything that depends on it is sent",
        behaviour=partial(test_node_durability.test_votes_and_commands_outlive_blackouts, 0),
        without=value(SimulatedDisk, "sync", unguarded.nothing),
        breaks=(AssertionError, FedKeeperError),
        match="is not on its disk",
    ),
    Guard(
        fault="without a journal file the vote is in memory: two leaders in one term (journal.py:51-95)",
        guard="Storage.setCurrentTerm, synced before the vote is sent",
        behaviour=test_node_elections.test_a_vote_is_on_disk_before_it_is_given,
        without=method(Storage, "setCurrentTerm", unguarded.vote_in_memory),
        match="response_vote",
    ),
    Guard(
        fault="a crash between dump and truncation has the whole journal cleared at the start (1489-1495)",
        guard="Contents.go_on_from keeps the entries after the snapshot",
        behaviour=partial(test_storage_crashes.outlive_every_cut, seeds=2),
        without=value(Contents, "go_on_from", unguarded.library_clears),
        match="lost or invented",
    ),
    Guard(
        fault="a dump that cannot be read is a log line: the keeper goes on with an empty state (1510-1511)",
        guard="Snapshot's checksum, and JournalDamaged at the start",
        behaviour=test_storage_damage.test_a_file_that_was_cut_short_is_noticed,
        without=together(
            method(Files, "_load_snapshot", unguarded.library_loads),
            value(Files, "_check", unguarded.nothing),
        ),
        breaks=NOT_RAISED,
        match="DID NOT RAISE",
    ),
    Guard(
        fault="records have no checksum: a torn or a changed one is read as it is (journal.py:181-225)",
        guard="records.read: a checksum for each batch and its header",
        behaviour=partial(test_storage_damage.test_every_flipped_byte_is_noticed, JOURNAL, 0x01),
        without=unguarded.no_checksums,
        match="a later one",
    ),
    Guard(
        fault="an error of the disk is logged, and the keeper writes on (serializer.py:77-95)",
        guard="Files._fail: nothing is written any more",
        behaviour=test_storage_faults.test_an_fsync_that_failed_is_not_tried_again,
        without=value(Files, "_fail", unguarded.on_after_failure),
        breaks=NOT_RAISED,
        match="DID NOT RAISE",
    ),
)
