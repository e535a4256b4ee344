"""Where secrets come from, and that they go nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkeeper.config import Experiment
from fedkeeper.errors import ConfigError

from .conftest import SMALL, Loading, changed

REMOTE: dict[str, Any] = {
    "providers.openwhisk.ow": {"auth": {"ow_api_host": "https://ow.example.org", "ow_auth": "u:k"}},
    "fl.mongo_config": {"url": "mongo.example.org", "username": "me", "password": "pw"},
    "fl.training_test_data": {
        f"{part}_{kind}_url": "m:f" for part in ("train", "test") for kind in ("images", "labels")
    },
}
OW_AUTH = "providers.openwhisk.ow.auth.ow_auth"
PASSWORD = "fl.mongo_config.password"


def with_changes(**more: Any) -> dict[str, Any]:
    """REMOTE, and further changes with `__` for the dots."""
    return changed(changed(SMALL, REMOTE), {key.replace("__", "."): value for key, value in more.items()})


def password(experiment: Experiment) -> str:
    """As functions get it."""
    return experiment.learning.mongo_config.address().password


def test_a_variable_may_stand_anywhere_in_a_text(loading: Loading):
    """Alone, amid other text, or not at all when it is written with two dollars."""
    loading.environment = {"PW": "s3cret", "HOST": "ow.example.org"}
    raw = with_changes(
        fl__mongo_config__password="${PW}",
        providers__openwhisk__ow__auth__ow_api_host="https://${HOST}:31001",
        providers__openwhisk__ow__auth__ow_auth="u:$${PW}",
    )
    experiment = loading.of({}, raw=raw)
    assert password(experiment) == "s3cret"
    assert experiment.providers.openwhisk["ow"].auth.ow_api_host == "https://ow.example.org:31001"
    assert experiment.providers.openwhisk["ow"].auth.ow_auth.get_secret_value() == "u:${PW}"
    assert (
        experiment.redacted()["providers"]["openwhisk"]["ow"]["auth"]["ow_api_host"]
        == "https://${HOST}:31001"
    )


def test_a_number_may_come_from_the_environment(loading: Loading):
    """And counts as what it is, also in the digest."""
    loading.environment = {"ROUNDS": "7"}
    experiment = loading.of({"fl.stopping.rounds_max": "${ROUNDS}"})
    assert experiment.learning.stopping.rounds_max == 7
    assert experiment.fingerprint()["scenarios.federated_learning.stopping.rounds_max"] == "7"


def test_a_secret_may_come_from_a_file(loading: Loading):
    """Relative to the config; the line end that editors add is not part of it."""
    (loading.folder / "pw").write_text("s3cret\n")
    raw = with_changes(fl__mongo_config={"url": "h", "username": "me", "password_file": "pw"})
    assert password(loading.of({}, raw=raw)) == "s3cret"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read"),
        (b"", "is empty"),
        (b"\xff\xfe", "is not a text file"),
        (b"x" * 70_000, "is larger than"),
    ],
)
def test_a_useless_secret_file_is_named(loading: Loading, content: bytes | None, problem: str):
    """With the reason, and no second fault for the password that is now missing."""
    if content is not None:
        (loading.folder / "pw").write_bytes(content)
    raw = with_changes(fl__mongo_config={"url": "h", "username": "me", "password_file": "pw"})
    with pytest.raises(ConfigError, match=rf"has 1 fault\n.*password_file: .*{problem}"):
        loading.of({}, raw=raw)


def test_a_secret_comes_from_one_place(loading: Loading):
    """Which one counts should not need a rule."""
    (loading.folder / "pw").write_text("other")
    with pytest.raises(ConfigError, match="password_file: is given, and password as well"):
        loading.of({}, raw=with_changes(fl__mongo_config__password_file="pw"))


def test_a_service_account_comes_from_its_file(loading: Loading):
    """As Google gives it out; the project is known by it too."""
    account = {
        "type": "service_account",
        "project_id": "p1",
        "private_key": "PEM",
        "client_email": "a@b",
        "new": "x",
    }
    (loading.folder / "sa.json").write_text(json.dumps(account))
    raw = with_changes(providers__google__gcf={"auth": {"service_account_file": "sa.json"}})
    cluster = loading.of({}, raw=raw).providers.google["gcf"]
    assert cluster.project_id == "p1"
    assert cluster.auth.service_account()["token_uri"] == "https://oauth2.googleapis.com/token"
    assert cluster.auth.service_account()["private_key"] == "PEM"


@pytest.mark.parametrize(
    ("auth", "fault"),
    [
        (
            {"anonymous": True, "private_key": "hunter2hunter2", "client_email": "a@b"},
            "auth.anonymous: is true beside",
        ),
        ({"private_key": "hunter2hunter2"}, "auth.client_email: is missing"),
        ({"client_email": "a@b"}, "auth.private_key: is missing"),
        ({"anonymous": True}, ""),
        ({}, ""),
    ],
)
def test_a_google_login_is_one_of_three(loading: Loading, auth: dict[str, object], fault: str):
    """A whole service account, nobody, or (without auth) whoever this machine is."""
    raw = with_changes(providers__google__gcf={"project": "p", "auth": auth})
    if not fault:
        account = loading.of({}, raw=raw).providers.google["gcf"].auth.service_account()
        assert account == {}
        return
    with pytest.raises(ConfigError, match=fault) as caught:
        loading.of({}, raw=raw)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"type": "authorized_user", "refresh_token": "hunter2hunter2"}']
)
def test_a_file_that_is_no_service_account_is_refused(loading: Loading, content: str):
    """Without showing what is in it."""
    (loading.folder / "sa.json").write_text(content)
    raw = with_changes(providers__google__gcf={"project": "p", "auth": {"service_account_file": "sa.json"}})
    with pytest.raises(ConfigError, match=r"has 1 fault\n.*service_account_file: is not") as caught:
        loading.of({}, raw=raw)
    assert "hunter2" not in str(caught.value)


def test_application_default_credentials_need_nothing(loading: Loading):
    """No auth, no service account."""
    raw = with_changes(providers__google__gcf={"project": "p"})
    assert loading.of({}, raw=raw).providers.google["gcf"].auth.service_account() == {}


def test_credentials_in_an_address_are_taken_out(loading: Loading):
    """With a warning that does not show them."""
    raw = with_changes(
        fl__mongo_config={
            "url": "mongodb://me:p%40ss-word@h1,h2:27018/adm?replicaSet=rs0&tls=true&retryWrites=true"
        },
        providers__openwhisk__ow__auth={"ow_api_host": "https://uuid:secret-key@ow.example.org/api/v1"},
    )
    experiment = loading.of({}, raw=raw)
    address = experiment.learning.mongo_config.address()
    assert (address.hosts, address.username, address.password) == ("h1:27017,h2:27018", "me", "p@ss-word")
    assert (address.replica_set, address.auth_source, address.tls) == ("rs0", "adm", True)
    assert experiment.providers.openwhisk["ow"].auth.ow_api_host == "https://ow.example.org"
    assert experiment.providers.openwhisk["ow"].auth.ow_auth.get_secret_value() == "uuid:secret-key"
    assert [warning.split(":")[0] for warning in experiment.warnings] == [
        "providers.openwhisk.ow.auth.ow_api_host",
        "scenarios.federated_learning.mongo_config.url",
    ]


def test_two_different_credentials_are_a_fault(loading: Loading):
    """Nobody can say which are the right ones."""
    with pytest.raises(ConfigError, match="url: holds another password than the key password") as caught:
        loading.of({}, raw=with_changes(fl__mongo_config__url="mongodb://me:hunter2hunter2@h"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {PASSWORD: "${NOPE}"},
            "password: environment variable NOPE is not set; export NOPE=… before you start",
        ),
        ({PASSWORD: "${EMPTY}"}, "password: environment variable EMPTY is not set"),
        ({PASSWORD: "${NOPE"}, "password: has a ${ without a name and a }"),
        ({PASSWORD: 123456}, "password: is not a text to YAML, which may have changed it; put it in quotes"),
        ({PASSWORD: "<your password>"}, "password: still has a placeholder; write the value in its place"),
        ({OW_AUTH: "<ADD OW_AUTH here>"}, "ow_auth: still has a placeholder"),
        ({OW_AUTH: "no-colon"}, "ow_auth: is not of the form uuid:key"),
        (
            {"fl.mongo_config.url": "<ADD_MONGO_IP_HERE>:27017"},
            "url: still has the placeholder <ADD_MONGO_IP_HERE>",
        ),
    ],
    ids=str,
)
def test_a_secret_that_is_none_is_one_fault(loading: Loading, changes: dict[str, Any], fault: str):
    """Named by its key, with what to do."""
    loading.environment = {"EMPTY": ""}
    with pytest.raises(ConfigError) as caught:
        loading.of({}, raw=changed(with_changes(), changes))
    assert str(caught.value).startswith("config.yaml has 1 fault\n")
    assert fault in str(caught.value)


def test_a_password_may_have_any_characters(loading: Loading):
    """Also those of placeholders."""
    assert password(loading.of({}, raw=with_changes(fl__mongo_config__password="a<b>c$d"))) == "a<b>c$d"


def test_unsafe_choices_are_warned_about_each_time(loading: Loading):
    """TLS that is not verified, http to elsewhere, a store without a user."""
    raw = with_changes(
        fl__mongo_config={"url": "h", "tls": True, "tls_verify": False},
        providers__openwhisk__ow__tls_verify=False,
        providers__openwhisk__ow__auth__ow_api_host="http://ow.example.org",
    )
    text = "\n".join(loading.of({}, raw=raw).warnings)
    for part in (
        "ow_api_host: is http",
        "ow.tls_verify: false",
        "mongo_config.username",
        "mongo_config.tls_verify",
    ):
        assert part in text


# The sign keeps a secret from being a word of ours by accident, and quotes or backslashes would be written
# otherwise in a repr, where the test would miss them.
secrets = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="\\'\"$<"),
    min_size=7,
    max_size=60,
).map(lambda text: "§" + text)
PLACES = (
    "fl.mongo_config.password",
    "providers.openwhisk.ow.auth.ow_auth",
    "providers.google.gcf.auth.private_key",
    "fl.mongo_config.passwrod",
    "providers.openwhisk.ow.auth.ow_auht",
    "fl.mongo_config.port",
    "fl.limits.attempts_max",
    "embedded.memory_mb",
    "fl.functions.fl_client.google.timeout",
    "fl.training_test_data.test_labels_url",
    "fl.mongo_config",
    "seed",
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=secrets, place=st.sampled_from(PLACES), way=st.sampled_from(["written", "variable", "file"]))
def test_a_secret_is_never_shown(loading: Loading, secret: str, place: str, way: str):
    """Not in a fault, warning, repr, config as run or fingerprint; wherever it was put by mistake."""
    loading.environment = {"SECRET": secret}
    value: Any = secret if way == "written" else "${SECRET}"
    if way == "file":
        (loading.folder / "secret").write_text(secret, encoding="utf-8")
        place, value = f"{place}_file", "secret"
    try:
        experiment = loading.of({}, raw=changed(with_changes(), {place: value}))
    except ConfigError as exc:
        shown = f"{exc} {exc.hint} {exc!r} {exc.__cause__!r}"
    else:
        shown = " ".join(
            (
                *map(repr, (experiment, experiment.providers, experiment.scenarios, experiment.warnings)),
                json.dumps([experiment.redacted(), experiment.fingerprint()], ensure_ascii=False),
            )
        )
    assert secret not in shown


def test_written_secrets_are_not_in_the_config_as_run(loading: Loading, tmp_path: Path):
    """The file in logs/ can be shown to anybody."""
    raw = with_changes(fl__training_test_data__train_images_url="https://h/x.npz?X-Signature=abcdef")
    redacted = json.dumps(loading.of({}, raw=raw).redacted())
    assert "abcdef" not in redacted
    assert '"password": "**********"' in redacted
