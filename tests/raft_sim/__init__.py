"""Real Raft nodes over simulated networks, clocks and disks; everything from one seed."""
