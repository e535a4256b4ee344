"""The table of all routes: what is served, and what the OpenAPI document says, come from the same lines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from fedkeeper.core.model import Run
from fedkeeper.keeper.api import schemas
from fedkeeper.keeper.api.call import Call
from fedkeeper.keeper.api.events import Events
from fedkeeper.keeper.api.guard import Access
from fedkeeper.keeper.api.keepers import KeeperRoutes
from fedkeeper.keeper.api.kv import PAGE, PAGE_MAX, Dictionary
from fedkeeper.keeper.api.runs import RunRoutes

Handler = Callable[[Call], Awaitable[web.StreamResponse]]

READER, OPERATOR = Access.READER, Access.OPERATOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of the query."""

    name: str
    about: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One of them."""

    method: str
    path: str  # "/v1/runs/{run}/events"
    handler: Handler
    about: str
    needs: Access
    answers: Mapping[int, Any]  # a type of JSON by status, or a tuple of them; None: no JSON
    body: type[schemas.Body] | None = None
    query: tuple[Field, ...] = ()
    errors: tuple[int, ...] = ()  # beside those that every route may answer with
    leader: bool = False  # followers answer 307, with the leader's address
    media: str = "application/json"
    details: str = ""
    greedy: bool = False  # the last parameter takes slashes as well
    counted: bool = field(default=True)  # among the requests in flight


def _text(name: str, about: str) -> Field:
    return Field(name=name, about=about, schema={"type": "string"})


def _count(name: str, about: str, **bounds: int) -> Field:
    return Field(name=name, about=about, schema={"type": "integer", "minimum": 0, **bounds})


def _choice(name: str, about: str, *values: str) -> Field:
    return Field(
        name=name, about=about, schema={"type": "string", "enum": list(values), "default": values[0]}
    )


_STALE: Final = _choice(
    "consistency", "stale: what this keeper has applied; linearizable: as of now", "stale", "linearizable"
)
_FRESH: Final = _choice(
    "consistency",
    "linearizable: everything that was acknowledged before; stale: what this keeper has applied",
    "linearizable",
    "stale",
)
_HISTORY: Final = _count("history_from", "leave out the history of earlier rounds")
_DELETION: Final = (
    _count("expected", "version that the entry must have"),
    _text("request", "the same request again is answered as the first time"),
    _text("fence", "an entry that must have the version `fence_version`, else this is rejected"),
    _count("fence_version", "see fence"),
)
_LISTING: Final = (
    _FRESH,
    _text("prefix", "only names that begin so"),
    _text("after", "only names beyond this one: `next` of the page before"),
    _count("limit", "names on a page", minimum=1, maximum=PAGE_MAX, default=PAGE),
    _choice("values", "with values and versions", "false", "true"),
    _choice("whole", "everything at once, of one moment, instead of a page", "false", "true"),
)


def routes(
    keepers: KeeperRoutes, runs: RunRoutes, kv: Dictionary, events: Events, document: Handler
) -> tuple[Route, ...]:
    """All routes."""
    return (
        *_of_dictionary(kv),
        *_of_runs(runs, events),
        *_of_cluster(keepers, document),
        *_of_members(keepers),
    )


def _of_dictionary(kv: Dictionary) -> tuple[Route, ...]:
    return (
        Route(
            method="GET",
            path="/v1/kv/{name}",
            handler=kv.get,
            about="A value of the dictionary",
            details="The name is percent-encoded UTF-8; slashes in it may stand as they are.",
            needs=READER,
            query=(_FRESH,),
            answers={200: schemas.Value},
            errors=(404,),
            leader=True,
            greedy=True,
        ),
        Route(
            method="PUT",
            path="/v1/kv/{name}",
            handler=kv.put,
            about="Set a value",
            details="`append` of rafty. 409: the entry, or the fence, has another version than was given.",
            needs=OPERATOR,
            body=schemas.Put,
            answers={200: schemas.Written},
            errors=(409,),
            leader=True,
            greedy=True,
        ),
        Route(
            method="DELETE",
            path="/v1/kv/{name}",
            handler=kv.delete,
            about="Delete a value",
            needs=OPERATOR,
            query=_DELETION,
            answers={200: schemas.Written},
            errors=(404, 409),
            leader=True,
            greedy=True,
        ),
        Route(
            method="GET",
            path="/v1/kv",
            handler=kv.names,
            about="Names of the dictionary, or its entries",
            needs=READER,
            query=_LISTING,
            answers={200: (schemas.Names, schemas.Entries)},
            leader=True,
        ),
    )


def _of_runs(runs: RunRoutes, events: Events) -> tuple[Route, ...]:
    return (
        Route(
            method="GET",
            path="/v1/runs",
            handler=runs.list,
            about="All runs in short",
            needs=READER,
            query=(_STALE,),
            answers={200: schemas.Runs},
            leader=True,
        ),
        Route(
            method="POST",
            path="/v1/runs",
            handler=runs.submit,
            about="Start a run",
            details="200: it is there already, with the same digest. 409: with another one.",
            needs=OPERATOR,
            body=schemas.Submission,
            answers={201: Run, 200: Run},
            errors=(409, 502),
            leader=True,
        ),
        Route(
            method="GET",
            path="/v1/runs/{run}",
            handler=runs.get,
            about="A run, whole",
            needs=READER,
            query=(_STALE, _HISTORY),
            answers={200: Run},
            errors=(404,),
            leader=True,
        ),
        Route(
            method="DELETE",
            path="/v1/runs/{run}",
            handler=runs.delete,
            about="Drop an ended run and what is stored of it",
            needs=OPERATOR,
            answers={200: schemas.Deleted},
            errors=(404, 409, 502),
            leader=True,
        ),
        Route(
            method="POST",
            path="/v1/runs/{run}/stop",
            handler=runs.stop,
            about="End a run before its end",
            details="Of a run that has ended already: nothing changes.",
            needs=OPERATOR,
            body=schemas.Stop,
            answers={200: Run},
            errors=(404, 409),
            leader=True,
        ),
        Route(
            method="GET",
            path="/v1/runs/{run}/events",
            handler=events.stream,
            about="A run as it goes on, as server-sent events",
            details="Event `run`: the run as JSON (see Run) at once and after changes; the first one with the"
            " history from `history_from` on, each later one only with rounds that are new. Event `end`: it"
            " has ended, as {phase, reason}. The id is the index in this keeper's log.",
            needs=READER,
            query=(_HISTORY,),
            answers={200: None},
            errors=(404,),
            media="text/event-stream",
            counted=False,
        ),
    )


def _of_cluster(keepers: KeeperRoutes, document: Handler) -> tuple[Route, ...]:
    return (
        Route(
            method="GET",
            path="/v1/health",
            handler=keepers.health,
            about="Whether this keeper works",
            needs=Access.NOBODY,
            answers={200: schemas.Health, 503: (schemas.Health, schemas.Failure)},
            counted=False,
        ),
        Route(
            method="GET",
            path="/v1/status",
            handler=keepers.status,
            about="The cluster, as this keeper sees it",
            needs=READER,
            answers={200: schemas.Status},
            counted=False,
        ),
        Route(
            method="GET",
            path="/v1/diagnostic",
            handler=keepers.diagnostic,
            about="This keeper, as rafty told of a server",
            needs=READER,
            answers={200: schemas.Diagnostic},
            counted=False,
        ),
        Route(
            method="GET",
            path="/v1/config",
            handler=keepers.config,
            about="This keeper's config, without secrets",
            needs=READER,
            answers={200: dict[str, Any]},
        ),
        Route(
            method="GET",
            path="/v1/openapi.json",
            handler=document,
            about="This document",
            needs=Access.NOBODY,
            answers={200: dict[str, Any]},
        ),
    )


def _of_members(keepers: KeeperRoutes) -> tuple[Route, ...]:
    return (
        Route(
            method="POST",
            path="/v1/conductor",
            handler=keepers.conduct,
            about="Have a keeper conduct, or with null whom placement chooses",
            needs=OPERATOR,
            body=schemas.Conduct,
            answers={200: schemas.Conductor},
            errors=(404, 409),
            leader=True,
        ),
        Route(
            method="POST",
            path="/v1/leader",
            handler=keepers.lead,
            about="Have a keeper lead",
            needs=OPERATOR,
            body=schemas.Lead,
            answers={200: schemas.Leader},
            errors=(404, 409),
            leader=True,
        ),
        Route(
            method="POST",
            path="/v1/members",
            handler=keepers.add,
            about="Take a keeper in",
            needs=OPERATOR,
            body=schemas.NewMember,
            answers={201: schemas.Members},
            errors=(409,),
            leader=True,
        ),
        Route(
            method="DELETE",
            path="/v1/members/{name}",
            handler=keepers.remove,
            about="Let a keeper go",
            needs=OPERATOR,
            answers={200: schemas.Members},
            errors=(409,),
            leader=True,
        ),
    )


class Table:
    """Finds the route of a path."""

    def __init__(self, every: tuple[Route, ...]) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._open: dict[str, tuple[str, str, bool, dict[str, Route]]] = {}
        for route in every:
            before, brace, rest = route.path.partition("{")
            if not brace:
                self._exact.setdefault(route.path, {})[route.method] = route
                continue
            after = rest.partition("}")[2]
            entry = self._open.setdefault(route.path, (before, after, route.greedy, {}))
            entry[3][route.method] = route

    def find(self, path: str) -> tuple[Mapping[str, Route], str]:
        """The routes of a raw path by method, none if there are none, and its parameter, as it stands."""
        exact = self._exact.get(path)
        if exact is not None:
            return exact, ""
        for before, after, greedy, by_method in self._open.values():
            if path.startswith(before) and path.endswith(after):
                parameter = path[len(before) : len(path) - len(after)]
                if greedy or (parameter and "/" not in parameter):
                    return by_method, parameter
        return {}, ""
