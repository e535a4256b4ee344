"""What of a run is under way: attempts are made, issued, and closed."""

from __future__ import annotations

from dataclasses import replace

from fedkeeper.core import attempts
from fedkeeper.core.model import Attempt, AttemptStatus, Intent, Invoke, Kind, Run
from fedkeeper.core.persistent import Buckets, Grown

Step = tuple[Run, tuple[Intent, ...]]


def ended_alike(run: Run, kind: Kind, shard: int) -> list[Attempt]:
    """Attempts of this round at the same part of the aggregation that have ended."""
    return [one for one in run.ended if (one.kind, one.shard, one.round) == (kind, shard, run.round)]


def next_number(run: Run, kind: Kind, shard: int = 0) -> int:
    """That of the next attempt at it in this round."""
    return len(ended_alike(run, kind, shard))


def is_failure(attempt: Attempt) -> bool:
    """Whether it came to nothing by itself."""
    return attempt.status in (AttemptStatus.FAILED, AttemptStatus.SILENT)


def start(
    run: Run,
    kind: Kind,
    *,
    number: int,
    now_ms: int,
    client: str = "",
    cluster: str = "",
    shard: int = 0,
    updates: int = 0,
    not_before_ms: int = 0,
) -> Step:
    """Make an attempt, and issue it if its time has come. `cluster`: the client's, not of server tasks."""
    attempt = made(
        run,
        kind,
        client=client,
        cluster=cluster or run.spec.server_cluster,
        shard=shard,
        number=number,
        not_before_ms=not_before_ms,
    )
    attempt = replace(attempt, updates=updates)
    if not_before_ms > now_ms:
        return replace(run, outbox=Buckets.of(run.outbox).put(attempt.key, attempt)), ()
    return issue(run, attempt, now_ms)


def made(
    run: Run,
    kind: Kind,
    *,
    client: str,
    cluster: str,
    number: int,
    shard: int = 0,
    not_before_ms: int = 0,
    issued_ms: int = -1,
) -> Attempt:
    """One that is not in the outbox yet; from `issued_ms` on its time is running."""
    pending = issued_ms < 0
    return Attempt(
        key=attempts.key(run, kind, client, shard, number),
        kind=kind,
        run=run.spec.run,
        round=run.round,
        client=client,
        number=number,
        cluster=cluster,
        status=AttemptStatus.PENDING if pending else AttemptStatus.SENDING,
        not_before_ms=not_before_ms,
        issued_ms=0 if pending else issued_ms,
        deadline_ms=0 if pending else issued_ms + attempts.timeout_ms(run.spec, kind),
        shard=shard,
    )


def issue(run: Run, attempt: Attempt, now_ms: int) -> Step:
    """Have it carried out."""
    run = replace(run, outbox=Buckets.of(run.outbox).put(attempt.key, issued(run, attempt, now_ms)))
    return run, (Invoke(run=run.spec.run, key=attempt.key),)


def issued(run: Run, attempt: Attempt, now_ms: int) -> Attempt:
    """The same, with its time running."""
    return replace(
        attempt,
        status=AttemptStatus.SENDING,
        issued_ms=now_ms,
        deadline_ms=now_ms + attempts.timeout_ms(run.spec, attempt.kind),
    )


def deadline_ms(run: Run, attempt: Attempt) -> int:
    """When it is given up, Unix ms: one to be sent has its time from the latest takeover on."""
    if attempt.status is AttemptStatus.SENDING and run.resumed_ms > attempt.issued_ms:
        return run.resumed_ms + attempts.timeout_ms(run.spec, attempt.kind)
    return attempt.deadline_ms


def due_ms(run: Run, attempt: Attempt) -> int:
    """When time alone changes something about it, Unix ms: it is issued, or given up."""
    status = attempt.status
    if status is AttemptStatus.PENDING:
        return attempt.not_before_ms
    return attempt.deadline_ms if status is AttemptStatus.RUNNING else deadline_ms(run, attempt)


def allowed_ms(run: Run, attempt: Attempt) -> int:
    """How long before its deadline its time began to run."""
    if attempt.status is AttemptStatus.SENDING:
        return deadline_ms(run, attempt) - max(attempt.issued_ms, run.resumed_ms)
    return attempt.deadline_ms - (attempt.sent_ms or attempt.issued_ms)


def close(run: Run, attempt: Attempt, status: AttemptStatus, reason: str, now_ms: int) -> Run:
    """It is answered, or given up: out of the outbox, and kept for the reports."""
    ended = replace(attempt, status=status, reason=reason, ended_ms=now_ms)
    outbox = Buckets.of(run.outbox).drop(attempt.key)
    return replace(run, outbox=outbox, ended=Grown.of(run.ended).add(ended))
