"""The introduction: the first frame each way once a channel is ready, and who is refused after it."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from fedkeeper.replication.raft.base import Hello
from fedkeeper.replication.raft.network.channels import Bytes
from fedkeeper.replication.raft.network.frames import Broken


class Intro(msgspec.Struct, frozen=True, kw_only=True, tag="intro"):
    """Who speaks, and whom it looks for."""

    hello: Hello
    to: str
    knock: bool = False  # of the lesser name: "I have no connection to you, dial me"


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    """Instead of an introduction: why there will be none. Only said to whom has proved itself."""

    reason: str


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Intro | Refusal] = msgspec.msgpack.Decoder(Intro | Refusal)


def encode(message: Intro | Refusal) -> bytes:
    """As a frame's body."""
    return _encoder.encode(message)


def decode(body: Bytes) -> Intro | Refusal:
    """From a frame's body. Broken if it is neither."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        raise Broken(f"its introduction cannot be read ({exc})") from None


def dials(mine: str, theirs: str) -> bool:
    """Of two keepers the one with the greater name dials: there is never more than one true connection."""
    return mine > theirs


def refusal(mine: Hello, members: Collection[str], intro: Intro, *, dialled: str) -> str:
    """Why `intro` does not come from whom it should; empty if it does.

    `members`: whom we want to be connected to. `dialled`: whom we dialled; empty if they did.
    """
    theirs = intro.hello
    reason = ""
    if dialled and theirs.name != dialled:
        reason = f"{dialled} was dialled, and {theirs.name} answered"
    elif intro.to != mine.name:
        reason = f"{theirs.name} looks for {intro.to}, and this is {mine.name}"
    elif theirs.name == mine.name:
        reason = f"both are named {mine.name}"
    elif theirs.name not in members:
        reason = f"{theirs.name} is no member of the cluster as {mine.name} knows it"
    elif mine.cluster and theirs.cluster and mine.cluster != theirs.cluster:
        reason = (
            f"{mine.name} is of the cluster {mine.cluster}, {theirs.name} of the cluster {theirs.cluster}"
        )
    elif not dialled and intro.knock == dials(theirs.name, mine.name):
        reason = f"of {mine.name} and {theirs.name} the greater name dials, the other only knocks"
    return reason
