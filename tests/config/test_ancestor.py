"""fl_faas_fabric's users bring their files. `ancestor-config-sample.yaml` is its sample, as it was published
(github.com/ansjin/fl_faas_fabric at 38b46b3, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedkeeper.errors import ConfigError
from fedkeeper.providers.google.config import Function as GoogleFunction
from fedkeeper.providers.openwhisk.config import Function as OpenWhiskFunction

from .conftest import HERE, OW_KEY, Loading

FL = "scenarios.federated_learning"
SERVERS = ("fl_server_init", "fl_server_aggregator", "fl_invoker_weights_update")
OUTDATED = {
    "version",
    *(
        f"providers.openwhisk.invasic_cluster.{key}"
        for key in ("base_url", "prometheus_config", "configurations")
    ),
    "providers.openwhisk.invasic_cluster.auth.ow_apigw_access_token",
    "providers.google.gcf_cluster.base_url",
    *(f"{FL}.training_test_data.{p}_{k}_url" for p in ("train", "test") for k in ("images", "labels")),
    f"{FL}.mongo_config.username",
    *(f"{FL}.functions.fl_client.openfaas.{key}" for key in ("func_path", "docker_image")),
    *(f"{FL}.functions.fl_client.google.{key}" for key in ("func_path", "runtime", "region")),
    *(
        f"{FL}.functions.{function}.openwhisk.{key}"
        for function in ("fl_client", *SERVERS)
        for key in ("func_path", "docker_image", "concurrency")
    ),
    *(f"{FL}.functions.{function}.openwhisk.blocking_cli" for function in SERVERS),
    *(
        f"scenarios.test.functions.nodeinfo.openwhisk.{key}"
        for key in ("func_path", "runtime", "docker", "concurrency")
    ),
    *(f"scenarios.test.functions.nodeinfo.google.{key}" for key in ("func_path", "runtime", "region")),
}


def test_the_ancestors_sample_loads_with_a_warning_per_outdated_key(
    loading: Loading, ancestor: Callable[[], str]
):
    """All of them, and each says what to write instead."""
    experiment = loading.text(ancestor())

    keys = [warning.split(": ")[0] for warning in experiment.warnings]
    assert set(keys) == OUTDATED
    # Credentials in base_url are a second thing to say about it.
    assert len(keys) == len(OUTDATED) + 1


def test_the_ancestors_sample_means_what_it_meant(loading: Loading, ancestor: Callable[[], str]):
    """Addresses, credentials, functions and the experiment itself are taken over."""
    experiment = loading.text(ancestor())

    cluster = experiment.providers.openwhisk["invasic_cluster"]
    assert (cluster.auth.ow_api_host, cluster.namespace) == ("https://10.0.0.7:31001", "guest")
    assert cluster.auth.ow_auth.get_secret_value() == OW_KEY
    google = experiment.providers.google["gcf_cluster"]
    assert (google.project_id, google.region) == ("my-project-17", "us-central1")
    assert google.auth.service_account()["private_key"].startswith("-----BEGIN PRIVATE KEY-----\n")
    assert [tuple(place) for place in experiment.placements()] == [
        ("client_0", "invasic_cluster", "direct"),
        ("client_1", "gcf_cluster", "invoker"),
    ]
    learning = experiment.learning
    assert learning.mongo_config.address().hosts == "10.0.0.8:27017"
    assert learning.training_spec().local_epochs == 5
    assert learning.training_spec().learning_rate == 1e-3
    data = learning.data_spec()
    assert data.train_labels.url == "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
    assert [source.array for source in (data.train_images, data.test_labels)] == ["x_train", "y_test"]
    on_openwhisk = experiment.function("federated_learning", "fl_client", "openwhisk")
    assert isinstance(on_openwhisk, OpenWhiskFunction)
    assert (on_openwhisk.memory, on_openwhisk.timeout_s) == (2048, 300)
    assert on_openwhisk.docker_image == "kkyfury/tensorflow"
    on_google = experiment.function("test", "nodeinfo", "google")
    assert isinstance(on_google, GoogleFunction)
    assert (on_google.memory, on_google.timeout_s, on_google.runtime) == (256, 60, "")


def test_the_sample_as_it_is_names_every_placeholder(loading: Loading):
    """And the keys of the service account that are still empty; nothing else is wrong with it."""
    with pytest.raises(ConfigError, match="has 7 faults") as caught:
        loading.text((HERE / "ancestor-config-sample.yaml").read_text())
    assert str(caught.value).count("placeholder") == 5
    assert str(caught.value).count("auth.private_key: is missing") == 1
    assert str(caught.value).count("auth.client_email: is missing") == 1


def test_old_code_beside_the_config_is_not_deployed(loading: Loading, ancestor: Callable[[], str]):
    """In a clone of the ancestor, functions/fl_client is the one that unpickles what it downloads."""
    (loading.folder / "functions" / "fl_client" / "openwhisk").mkdir(parents=True)
    experiment = loading.text(ancestor())
    source = experiment.source("federated_learning", "fl_client", "openwhisk")
    assert not source.is_relative_to(loading.folder)


def test_ndam_is_nadam(loading: Loading):
    """The ancestor's code spelt it so."""
    experiment = loading.of({"fl.model_params.optim": "ndam"})
    assert experiment.learning.training_spec().optimizer == "nadam"
    assert experiment.warnings == (f"{FL}.model_params.optim: ndam is written nadam",)


def test_a_cluster_has_one_region(loading: Loading, ancestor: Callable[[], str]):
    """The ancestor said it per function; two of them are two clusters now."""
    text = ancestor().replace("region: us-central1", "region: europe-west3", 1)
    with pytest.raises(ConfigError, match=r"fl_client\.google\.region: a cluster has one region"):
        loading.text(text)


def test_a_foreign_base_url_asks_for_the_new_keys(loading: Loading):
    """Where it does not tell project and region."""
    faults = loading.faults({"providers.google.gcf.base_url": "https://functions.example.org/"})
    assert faults == ["providers.google.gcf.base_url: is outdated; write project and region instead"]


def test_other_credentials_in_base_url_are_a_fault(loading: Loading, ancestor: Callable[[], str]):
    """Which are right cannot be guessed, and neither is shown."""
    text = ancestor().replace(f"https://{OW_KEY}@", "https://someone:hunter2hunter2@")
    with pytest.raises(ConfigError, match=r"base_url: holds other credentials than auth\.ow_auth") as caught:
        loading.text(text)
    assert "hunter2" not in str(caught.value)


def test_the_ancestors_node_function_stays_where_it_is_there(loading: Loading, ancestor: Callable[[], str]):
    """In a clone of the ancestor its nodeinfo is deployed as it is, on a Node.js that there still is."""
    handler = loading.folder / "functions" / "nodeinfo" / "openwhisk" / "handler.js"
    handler.parent.mkdir(parents=True)
    handler.write_text("exports.main = () => ({});")
    experiment = loading.text(ancestor())

    there = experiment.function("test", "nodeinfo", "openwhisk")
    assert (there.func_path, there.runtime) == (handler, "nodejs:default")
    told = [warning for warning in experiment.warnings if ".nodeinfo.openwhisk.runtime" in warning]
    assert told == [
        "scenarios.test.functions.nodeinfo.openwhisk.runtime: nodejs:14 is too old; write nodejs:default"
    ]
    assert experiment.function("test", "nodeinfo", "google").runtime == ""


@pytest.mark.parametrize("runtime", ["nodejs:default", "nodejs:18", "nodejs:22"])
def test_a_node_function_of_ones_own_keeps_its_runtime(loading: Loading, runtime: str):
    """What today's platforms have is not outdated."""
    (loading.folder / "f.js").touch()
    changes = {"scenarios.test.functions.f.openwhisk": {"func_path": "f.js", "runtime": runtime}}
    experiment = loading.of(changes)
    assert experiment.function("test", "f", "openwhisk").runtime == runtime
    assert experiment.warnings == ()
