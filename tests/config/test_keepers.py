"""Which keepers a file means, and which of them may be started on this host."""

from __future__ import annotations

from typing import Any

import pytest

from fedkeeper.config import Experiment, member_to_start
from fedkeeper.errors import ConfigError

from .conftest import SMALL, Loading, changed

FAR: dict[str, Any] = {
    "providers.openwhisk.ow": {"auth": {"ow_api_host": "https://ow.example.org", "ow_auth": "u:k"}},
    "providers.google.gcf": {"project": "p"},
    "fl.mongo_config": {"url": "mongo.example.org", "username": "me", "password": "pw"},
    "fl.training_test_data": {
        f"{part}_{kind}_url": "m:f" for part in ("train", "test") for kind in ("images", "labels")
    },
}
MEMBERS = {
    f"k{n}": {"raft": f"10.0.0.{n}:7000", "api": f"https://10.0.0.{n}:7443", "api_bind": "0.0.0.0:7443"}
    for n in (1, 2, 3)
}
SECRET = "0123456789abcdef-secret"


def loaded(loading: Loading, keepers: dict[str, Any], **more: Any) -> Experiment:
    """The small experiment with this section; on platforms elsewhere."""
    return loading.of({"keepers": keepers, **more}, raw=changed(SMALL, FAR))


def test_three_embedded_keepers_are_the_default(loading: Loading):
    """Nothing has to be written; each has a folder of its own below that of the embedded services."""
    experiment = loading.of({})
    assert experiment.keepers.names() == ("k1", "k2", "k3")
    assert experiment.keepers_folder == loading.folder / ".fedkeeper" / "keepers" / "small"
    assert member_to_start(experiment, "k2") is None


def test_members_are_not_embedded(loading: Loading):
    """Writing them is enough, and their folder may be elsewhere."""
    experiment = loaded(loading, {"members": MEMBERS, "data_dir": "/var/lib/fedkeeper"})
    assert not experiment.keepers.embedded
    assert experiment.keepers.names() == ("k1", "k2", "k3")
    assert str(experiment.keepers_folder) == "/var/lib/fedkeeper/small"


def test_keepers_do_not_define_the_experiment(loading: Loading):
    """A run goes on with more of them, or with others."""
    assert loading.of({"keepers.count": 5}).digest() == loading.of({}).digest()


def test_an_unknown_keeper_is_not_started(loading: Loading):
    """Those that there are follow."""
    with pytest.raises(ConfigError, match="has no keeper 'k9'") as caught:
        member_to_start(loading.of({}), "k9")
    assert caught.value.hint == "its keepers are: k1, k2, k3"


def test_an_open_door_is_refused_with_everything_that_is_missing(loading: Loading):
    """Off loopback: a secret (or TLS) between keepers, TLS and a token for the API."""
    experiment = loaded(loading, {"members": MEMBERS})
    with pytest.raises(ConfigError) as caught:
        member_to_start(experiment, "k1")
    assert str(caught.value).splitlines() == [
        "keeper k1 is not started: config.yaml has 4 faults",
        "  keepers.secret: is missing, and 10.0.0.1:7000 is not loopback: anybody could be a keeper;"
        " write secret, or tls",
        "  keepers.api.operator_token: is missing, and 0.0.0.0:7443 is not loopback: anybody could command",
        "  keepers.api.cert_file: is missing, and https://10.0.0.1:7443 needs it; write the PEM file",
        "  keepers.api.key_file: is missing, and https://10.0.0.1:7443 needs it; write the PEM file",
    ]


def test_files_are_looked_at_where_the_keeper_starts(loading: Loading):
    """The config of all hosts loads anywhere; only the keeper's own host has its key."""
    keepers = {
        "members": MEMBERS,
        "secret": SECRET,
        "api": {"cert_file": "k.pem", "key_file": "k.key", "operator_token": SECRET + "-2"},
    }
    experiment = loaded(loading, keepers)
    with pytest.raises(ConfigError, match=r"keepers.api.cert_file: cannot read .*k\.pem: No such file"):
        member_to_start(experiment, "k1")
    (loading.folder / "k.pem").touch()
    (loading.folder / "k.key").touch()
    assert member_to_start(experiment, "k1") == experiment.keepers.members["k1"]


def test_on_loopback_nothing_is_needed(loading: Loading):
    """But listening on all interfaces is not loopback."""
    here = {"raft": "127.0.0.1:7000", "api": "http://127.0.0.1:7001"}
    members = {"k1": here, "k2": {"raft": "[::1]:7000", "api": "http://localhost:7002"}}
    experiment = loading.of({"keepers.members": members})
    assert member_to_start(experiment, "k1") is not None
    assert member_to_start(experiment, "k2") is not None
    opened = here | {"raft_bind": "0.0.0.0:7000", "api_bind": "0.0.0.0:7001"}
    with pytest.raises(ConfigError) as caught:
        member_to_start(loading.of({"keepers.members": {"k1": opened}}), "k1")
    assert [line.split(": ")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "keepers.secret",
        "keepers.members.k1.api",
        "keepers.api.operator_token",
        "keepers.api.cert_file",
        "keepers.api.key_file",
    ]


def test_secrets_come_from_files_and_go_nowhere(loading: Loading):
    """Neither the redacted config nor a repr shows them."""
    for name in ("secret", "reader", "operator"):
        (loading.folder / name).write_text(f"{name}-{SECRET}\n")
    loading.environment = {"TOKEN": f"operator-{SECRET}"}
    experiment = loaded(
        loading,
        {
            "members": MEMBERS,
            "secret_file": "secret",
            "api": {"reader_token_file": "reader", "operator_token": "${TOKEN}"},
        },
    )
    keepers = experiment.keepers
    assert keepers.secret is not None
    assert keepers.secret.get_secret_value() == f"secret-{SECRET}"
    assert keepers.api.reader_token is not None
    assert keepers.api.reader_token.get_secret_value() == f"reader-{SECRET}"
    assert SECRET not in repr(keepers) + str(experiment.redacted())


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {"keepers.count": 2},
            "keepers.count: 2 keepers stop as soon as either is away; 1 is simpler and 3 are",
        ),
        ({"keepers.count": 4}, "keepers.count: 4 keepers survive the loss of 1, as 3 do"),
        ({"keepers.fsync": "off"}, "keepers.fsync: off: a power cut may lose what was acknowledged"),
    ],
)
def test_what_is_unwise_is_said(loading: Loading, changes: dict[str, Any], warning: str):
    """Each time, as it can be meant."""
    [said] = loading.of(changes).warnings
    assert said.startswith(warning)
