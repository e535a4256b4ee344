"""The disk of each host: the product's simulated disk, with the faults that the nemesis wants."""

from __future__ import annotations

from fedkeeper.replication.raft.simulated_disk import Platter


class HostDisk(Platter):
    """A platter that can be armed, filled up and mended."""

    def arm(self, operations: int, *, power: bool) -> None:
        """In the middle of one of the next operations, or after it, the process dies."""
        self.disarm()
        if power:
            self.cut_at = self.operations + operations
        else:
            self.kill_at = self.operations + operations

    def disarm(self) -> bool:
        """Return whether it was the power that went."""
        power = self.cut_at > 0
        self.cut_at = self.kill_at = 0
        return power

    def let_go(self) -> None:
        """The process that used it is gone; nobody is hurt by what was meant for it."""
        self.disarm()
        for disk in self._claims.values():
            disk.close()
        self._claims.clear()

    def fail(self, fault: str) -> None:
        """full, full soon, read-only, fsync fails."""
        used = sum(file.size for file in self._files.values())
        match fault:
            case "full":
                self.space_bytes = used
            case "full soon":
                self.space_bytes = used + 2000
            case "read-only":
                self.read_only = True
            case _:
                self.sync_fails = True

    def mend(self) -> None:
        """It works again."""
        self.space_bytes, self.read_only, self.sync_fails = None, False, False
