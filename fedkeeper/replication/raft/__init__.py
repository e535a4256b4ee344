"""Several keepers, one log: PySyncObj's Raft behind guards, our own files and our own network."""
