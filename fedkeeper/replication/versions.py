"""Which version of the codec brought what: no command is written that an older keeper could not read.

Whoever adds a command, or a field with its default, names it here under the next version, and raises
`VERSION`. What is at its default is not written, so a keeper that does not know the field reads the line. A
default is therefore for ever, and a change of meaning needs a new name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from operator import attrgetter
from typing import Any, Final, get_args, get_origin, get_type_hints

from fedkeeper.core.model import Command, State

VERSION: Final = 5
COMMANDS: Final[Mapping[str, type]] = {kind.__name__: kind for kind in get_args(Command)}

# What is not listed has been there since version 1. A new command is listed alone, its first fields are not.
SINCE: Final[Mapping[str, int]] = (
    dict.fromkeys(
        (
            "FunctionsDeployed",
            "KeeperStarted",
            "KeeperMeasured",
            "KeeperLost",
            "KeeperRemoved",
            "PutValue",
            "DeleteValue",
            "ClaimConductor.why",
            "ClaimConductor.pinned",
            "RunSpec.deploy_timeout_ms",
            "RunSpec.book",
            "Run.urls",
            "Run.deployed",
            "State.conductor_why",
            "State.conductor_since_ms",
            "State.conductor_rounds",
            "State.pinned",
            "State.keepers",
            "State.kv",  # version 1 had it for texts, and no command that wrote any
            "State.kv_version",
            "State.kv_bytes",
            "State.answered",
        ),
        2,
    )
    | dict.fromkeys(
        (
            "ClaimConductor.unfit",
            "ClaimConductor.unfit_ms",
            "KeeperInfo.unfit",
            "KeeperInfo.unfit_times",
            "KeeperInfo.unfit_until_ms",
        ),
        3,
    )
    | dict.fromkeys(
        (
            "ShardStored",
            "UpdatesFolded",
            "RoundAggregated.parts",
            "RunSpec.shards",
            "RunSpec.shard_bytes_max",
            "RunSpec.shard_updates_bytes_max",
            "RunSpec.early_updates_min",
            "RunSpec.early_bytes_min",
            "Run.parts",
            "Run.folds",
            "Run.settled",
            "Run.ready",
            "Attempt.shard",
            "Attempt.updates",
        ),
        4,
    )
    | dict.fromkeys(("ClaimConductor.resumes", "Run.resumed_ms"), 5)
)

Plain = Any  # what a JSON encoder takes, dataclasses of the model included
Rule = Callable[[Any], tuple[Plain, int]]  # the value to write, and the version that its reader must have


class Form:
    """How one kind of dataclass is written: without what is at its default, nested ones alike."""

    def __init__(self, kind: type[Any]) -> None:
        self.kind = kind
        self._since = SINCE.get(kind.__name__, 1)
        names = [field.name for field in fields(kind)]
        self._names = tuple(names)
        self._get = attrgetter(*names)
        self._optional = tuple(
            (field.name, _default(field), SINCE.get(f"{kind.__name__}.{field.name}", 1))
            for field in fields(kind)
            if (field.default, field.default_factory) != (MISSING, MISSING)
        )
        hints = get_type_hints(kind)
        rules = ((name, _rule(hints[name])) for name in names)
        self._nested = tuple((name, rule) for name, rule in rules if rule is not None)

    def __call__(self, value: Any) -> tuple[Plain, int]:
        """`value` to write, and the version that whoever reads it must have."""
        if type(value) is not self.kind:
            return value, 1  # of a wrong type: whoever checks what is written will see
        plain = dict(zip(self._names, self._get(value), strict=True))
        needed = self._since
        for name, default, since in self._optional:
            given = plain[name]
            if given is default or (given == default and _alike(given, default)):
                del plain[name]
            elif since > needed:
                needed = since
        for name, rule in self._nested:
            if name in plain:
                plain[name], version = rule(plain[name])
                needed = max(needed, version)
        return plain, needed


def _default(field: Any) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _alike(given: object, default: object) -> bool:
    """Not True for 1, nor 0.0 for 0; any mapping may stand for a dictionary."""
    return type(given) is type(default) or (isinstance(given, Mapping) and isinstance(default, Mapping))


def _rule(hint: Any) -> Rule | None:
    """How values of this type are written, if not as they are: where something in them may be left out."""
    if is_dataclass(hint):
        kind: Any = hint
        return Form(kind) if _grew(hint) else None
    args = get_args(hint)
    if get_origin(hint) is Mapping and (rule := _rule(args[1])) is not None:
        return _each(rule)
    if get_origin(hint) is Sequence and (rule := _rule(args[0])) is not None:
        return _each_in_line(rule)
    assert not any(_grew(arg) for arg in args), f"no rule for {hint}"
    return None


def _each(rule: Rule) -> Rule:
    def of_mapping(value: Any) -> tuple[Plain, int]:
        if not isinstance(value, Mapping):
            return value, 1
        written = {name: rule(one) for name, one in value.items()}
        plain = {name: one for name, (one, _) in written.items()}
        return plain, max((needed for _, needed in written.values()), default=1)

    return of_mapping


def _each_in_line(rule: Rule) -> Rule:
    def of_sequence(value: Any) -> tuple[Plain, int]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return value, 1
        written = [rule(one) for one in value]
        return [one for one, _ in written], max((needed for _, needed in written), default=1)

    return of_sequence


def _grew(hint: Any) -> bool:
    """Whether a field has been added to this dataclass, or to one in it, since it was first written."""
    if not is_dataclass(hint):
        return False
    kind: Any = hint
    hints = get_type_hints(kind)
    return any(
        f"{kind.__name__}.{name}" in SINCE or _grew(inner) or any(map(_grew, get_args(inner)))
        for name, inner in hints.items()
    )


FORMS: Final[Mapping[type, Form]] = {kind: Form(kind) for kind in (*COMMANDS.values(), State)}
