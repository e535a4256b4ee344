"""Every error FedKeeper raises on purpose.

FedKeeperError
+ ConfigError                  the experiment's file is wrong (exit 2)
+ ProviderError                a FaaS platform
  + ProviderUnavailable        nothing happened: no connection, or the platform has no room (503)
  + InvocationUnknown          sent, no usable answer: it may have happened (Happened.UNKNOWN)
  + InvocationFailed           it happened, and the platform says that it failed (Happened.YES)
  + RequestRefused             the platform answered "no"
    + AuthenticationRefused    401 or 403
    + FunctionMissing          404
    + Conflict                 409
      + Changing               by somebody else, at this moment: look again in a while
    + TooLarge                 413: payload, parameters or code
    + Throttled                429; `retry_after_s` says when to come back
  + DeploymentFailed           the platform took the package and could not make it run
+ StoreError                   the weights store
  + StoreUnavailable           no connection, or no primary
  + StoreRefused               wrong credentials or missing rights
  + ObjectMissing              no object of that name
  + ObjectDamaged              bytes and sha256 (or shapes) do not agree
+ TaskError                    a function was given something it cannot work with
  + UpdateRefused              NaN, infinite, wrong shape, wrong dtype: never averaged
+ JournalError                 the keeper's own log on disk
  + JournalDamaged             a record that is not the last one does not check
  + JournalFull                no space, or not writable
  + JournalUnconfirmed         may be on disk, and may not (Happened.UNKNOWN)
+ ClusterError                 the keepers among themselves
  + NoLeader                   no leader in time, or no majority: nothing was proposed
  + OutcomeUnknown             proposed, no answer in time: it may be in the log (Happened.UNKNOWN)
  + KeeperStopped              this keeper's log has stopped (disk, damage, removed)
  + MembershipRefused          a change of the members that would not be safe now
  + EpochOver                  another keeper conducts now: stop
  + LeaseLost                  nothing was confirmed for too long: claim anew before acting
+ ApiError                     a keeper's HTTP API refused, or could not be reached
  + ApiRefused                 no token, a wrong one, or one that may only read (401, 403)
  + NotThere                   no such entry, run or route (404)
  + Rejected                   the replicated state does not allow it (409): compare-and-set, a name in use
  + KeeperBusy                 nothing was begun (429, 503); `retry_after_s` says when to come back
+ ServiceError                 an embedded service (mongod, fabric) did not start
  + PortTaken                  the configured port is in use
+ RunError                     the run ended without reaching its end
  + RunFailed                  too few updates, too many failures
  + RunChanged                 an unfinished run of this name has another config
+ Interrupted                  Ctrl-C; the run can be resumed (exit 130)
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Happened(StrEnum):
    """Whether the act that failed has had its effect: what decides if it may be done again."""

    NO = "no"
    YES = "yes"
    UNKNOWN = "unknown"


class FedKeeperError(Exception):
    """Base of all.

    `happened` says whether the act took place all the same; `hint` what to try.
    """

    exit_code: ClassVar[int] = 1
    happened: ClassVar[Happened] = Happened.NO

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.hint = hint

    @property
    def definite(self) -> bool:
        """False when the act may have happened all the same, and nobody can tell."""
        return self.happened is not Happened.UNKNOWN


class ConfigError(FedKeeperError):
    """The experiment's file is missing, unreadable or wrong."""

    exit_code = 2


class ProviderError(FedKeeperError):
    """A FaaS platform: names the cluster, the function (empty: the platform as a whole) and the problem."""

    def __init__(
        self, cluster: str, function: str, problem: str, *, status: int | None = None, hint: str = ""
    ) -> None:
        where = f"{cluster}: function {function!r}" if function else cluster
        super().__init__(f"{where}: {problem}", hint=hint)
        self.cluster = cluster
        self.function = function
        self.problem = problem
        self.status = status  # HTTP status, where there was one


class ProviderUnavailable(ProviderError):
    """Nothing happened: no connection to the platform, or it has no room (503). Ask again later."""


class InvocationUnknown(ProviderError):
    """The request went out and no usable answer came: the function may be running."""

    happened = Happened.UNKNOWN


class InvocationFailed(ProviderError):
    """The platform took it, ran it or tried to, and answered that it failed: it is not to be sent again."""

    happened = Happened.YES

    def __init__(
        self,
        cluster: str,
        function: str,
        problem: str,
        *,
        activation_id: str,
        status: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(cluster, function, problem, status=status, hint=hint)
        self.activation_id = activation_id  # empty where the platform does not say


class RequestRefused(ProviderError):
    """The platform answered that it will not do it."""


class AuthenticationRefused(RequestRefused):
    """Wrong credentials (401), or no right to do this (403)."""


class FunctionMissing(RequestRefused):
    """No such function on the platform (404)."""


class Conflict(RequestRefused):
    """Something of that name is there already, or was changed at the same time (409)."""


class Changing(Conflict):
    """Somebody else is changing it, or has just done so (409): it will pass, look again in a while."""


class TooLarge(RequestRefused):
    """Payload, parameters or code are above the platform's limit (413)."""


class Throttled(RequestRefused):
    """Too many requests (429). `retry_after_s`: seconds until the platform will take more."""

    def __init__(
        self, cluster: str, function: str, problem: str, *, retry_after_s: float, hint: str = ""
    ) -> None:
        super().__init__(cluster, function, problem, status=429, hint=hint)
        self.retry_after_s = retry_after_s


class DeploymentFailed(ProviderError):
    """The platform took the package and could not make it run."""


class StoreError(FedKeeperError):
    """The weights store."""


class StoreUnavailable(StoreError):
    """No connection, or no primary, within the configured wait."""

    happened = Happened.UNKNOWN


class StoreRefused(StoreError):
    """Wrong credentials, or missing rights."""


class ObjectMissing(StoreError):
    """No object of that name in the store."""


class ObjectDamaged(StoreError):
    """Bytes and sha256, or manifest and tensors, do not agree."""


class TaskError(FedKeeperError):
    """A function was given something it cannot work with."""


class UpdateRefused(TaskError):
    """An update that must never be averaged: NaN, infinite, wrong shape, dtype or size."""


class JournalError(FedKeeperError):
    """The keeper's own log on disk."""


class JournalDamaged(JournalError):
    """A record that is not the last one does not check."""


class JournalFull(JournalError):
    """The journal cannot be written: no space, or no permission."""


class JournalUnconfirmed(JournalError):
    """The disk did not say whether a command is on it: the next start will tell."""

    happened = Happened.UNKNOWN


class ClusterError(FedKeeperError):
    """The keepers among themselves."""


class NoLeader(ClusterError):
    """There was no leader in time, or no majority: nothing was proposed."""


class OutcomeUnknown(ClusterError):
    """Proposed, and no answer came in time: it may be in the log, or come to be."""

    happened = Happened.UNKNOWN


class KeeperStopped(ClusterError):
    """This keeper's log takes nothing more: its disk failed, its files are damaged, or it was removed."""


class MembershipRefused(ClusterError):
    """The members are not changed: another change is under way, or no majority would be safe."""


class EpochOver(ClusterError):
    """Another keeper conducts, or this one under another epoch. Between the keeper's parts only."""


class LeaseLost(ClusterError):
    """The log confirmed nothing for longer than the lease. Between the keeper's parts only."""


class ApiError(FedKeeperError):
    """A keeper's HTTP API refused, or could not be reached. `status`: HTTP, where there was one."""

    def __init__(self, problem: str, *, status: int | None = None, hint: str = "") -> None:
        super().__init__(problem, hint=hint)
        self.status = status


class ApiRefused(ApiError):
    """No token, a wrong one (401), or one that may only read (403)."""


class NotThere(ApiError):
    """No entry, run or route of that name (404)."""


class Rejected(ApiError):
    """The replicated state does not allow it (409): another version, a name in use, a run that has ended."""


class KeeperBusy(ApiError):
    """Too much at once, and nothing was begun. `retry_after_s`: seconds until it is worth another try."""

    def __init__(
        self, problem: str, *, status: int | None = 503, retry_after_s: float = 1.0, hint: str = ""
    ) -> None:
        super().__init__(problem, status=status, hint=hint)
        self.retry_after_s = retry_after_s


class ServiceError(FedKeeperError):
    """An embedded service (mongod, fabric) did not start or did not stay up."""


class PortTaken(ServiceError):
    """The configured port is in use by another program."""


class RunError(FedKeeperError):
    """The run ended without reaching its end."""


class RunFailed(RunError):
    """Too few updates, or an aggregation that kept failing."""


class RunChanged(RunError):
    """An unfinished run of this name was started with another config."""

    exit_code = 2


class Interrupted(FedKeeperError):
    """Stopped by the user; the same command resumes."""

    exit_code = 130
