"""The network between keepers: authenticated, encrypted, bounded; nothing that came in is unpickled."""

from fedkeeper.replication.raft.network.channels import Credentials, Unprotected
from fedkeeper.replication.raft.network.limits import Counts, Limits
from fedkeeper.replication.raft.network.peers import PeerNetwork
from fedkeeper.replication.raft.network.secret import SharedSecret
from fedkeeper.replication.raft.network.tls import MutualTls

__all__ = ["Counts", "Credentials", "Limits", "MutualTls", "PeerNetwork", "SharedSecret", "Unprotected"]
