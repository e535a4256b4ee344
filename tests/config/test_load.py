"""What a right file becomes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from fedkeeper.config import load, shipped
from fedkeeper.config.files import find
from fedkeeper.errors import ConfigError
from fedkeeper.runtime import wire

from .conftest import ROOT, SMALL, Loading


def test_the_sample_runs_as_it_is():
    """It loads without a warning, and says what the README promises of it."""
    experiment = load(ROOT / "config-sample.yaml", environment={})

    assert experiment.warnings == ()
    homes = [placement.cluster for placement in experiment.placements()]
    assert homes == ["ow_here"] * 6 + ["gcf_here"] * 4
    assert all(cluster.embedded for cluster in experiment.clusters().values())
    learning = experiment.learning
    assert learning.mongo_config.embedded
    assert learning.clients_info.num_clients_per_round == 10
    assert (learning.stopping.target_accuracy, learning.stopping.rounds_max) == (0.97, 15)
    assert learning.training_spec() == wire.TrainingSpec(
        optimizer="adam", learning_rate=1e-3, local_epochs=1, batch_size=32
    )
    assert learning.model_spec() == wire.ModelSpec(name="cnn", input_shape=(28, 28, 1))
    assert learning.partition_spec() == wire.PartitionSpec(scheme="iid")
    data = (ROOT / "data" / "mnist-12k.npz").as_uri()
    assert learning.data_spec().test_labels == wire.Source(url=data, array="y_test")
    assert experiment.function("test", "nodeinfo", "google").timeout_s == 60


def test_real_platforms_load_with_their_secrets(tmp_path: Path):
    """The documented config for real platforms is right but for the secrets, which come from elsewhere."""
    shutil.copy(ROOT / "docs" / "config-real-platforms.yaml", tmp_path / "config.yaml")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "service-account.json").write_text(
        '{"type": "service_account", "project_id": "my-project", "private_key": "PEM", "client_email": "a@b"}'
    )
    environment = {"OW_AUTH": "u:k", "MONGO_PASSWORD": "pw"}
    environment |= {"FEDKEEPER_SECRET": "s" * 32, "FEDKEEPER_TOKEN": "t" * 32}
    experiment = load(tmp_path / "config.yaml", environment=environment)

    assert experiment.warnings == ()
    assert experiment.learning.mongo_config.address().password == "pw"
    assert experiment.providers.google["iowa"].auth.service_account()["private_key"] == "PEM"
    assert experiment.providers.openwhisk["campus"].auth.ow_auth.get_secret_value() == "u:k"
    assert len(experiment.placements()) == 100
    assert experiment.in_flight_max("campus") == 30
    assert experiment.in_flight_max("iowa") == 100
    assert experiment.keepers.names() == ("k1", "k2", "k3")
    assert experiment.keepers.secret.get_secret_value() == "s" * 32


def test_numbers_may_be_texts(loading: Loading):
    """The ancestor's users write "5" and "1e-3"; YAML reads 1e-3 as a text anyway."""
    learning = loading.of(
        {
            "fl.model_params.lr": "1e-3",
            "fl.model_params.local_epochs": "5",
            "fl.limits.model_bytes_max": "1MB",
        }
    ).learning

    assert learning.model_params.lr == 1e-3
    assert learning.model_params.local_epochs == 5
    assert learning.limits.model_bytes_max == 1024 * 1024


@pytest.mark.parametrize(
    ("platform", "written", "timeout_s"),
    [
        ("openwhisk", "300000", 300),
        ("openwhisk", 300000, 300),
        ("openwhisk", "300s", 300),
        ("openwhisk", "5m", 300),
        ("google", "300s", 300),
        ("google", 300, 300),
        ("google", "60000ms", 60),
    ],
)
def test_a_bare_timeout_is_in_the_platforms_unit(
    loading: Loading, platform: str, written: object, timeout_s: float
):
    """Milliseconds on OpenWhisk, seconds on Google, and whatever unit is written."""
    experiment = loading.of({f"fl.functions.fl_client.{platform}.timeout": written})
    assert experiment.function("federated_learning", "fl_client", platform).timeout_s == timeout_s


@pytest.mark.parametrize("written", ["2048", 2048, "2048MB", "2Gi", "2 G", "2048Mi"])
def test_memory_is_in_megabytes(loading: Loading, written: object):
    """With a unit or without."""
    experiment = loading.of({"fl.functions.fl_client.google.memory": written})
    assert experiment.function("federated_learning", "fl_client", "google").memory == 2048


def test_functions_have_defaults(loading: Loading):
    """A function that the file does not speak of, and one with nothing below it, can be deployed."""
    experiment = loading.of({"fl.functions.fl_client.google": None})
    for platform in ("openwhisk", "google"):
        assert experiment.function("federated_learning", "fl_client", platform).memory == 512
    assert experiment.params_path("fl_client", "google") == experiment.folder / "params" / "clients"
    assert experiment.params_path("fl_server_init", "openwhisk").name == "fl_server_init.json"


def test_a_function_beside_the_config_is_found(loading: Loading):
    """Before one of the same name that was shipped; and one that is nowhere is named with the way out."""
    own = loading.folder / "functions" / "nodeinfo"
    own.mkdir(parents=True)
    experiment = loading()
    assert experiment.source("federated_learning", "nodeinfo", "openwhisk") == own
    with pytest.raises(ConfigError, match=r"'nobody'.*no such file") as caught:
        experiment.source("federated_learning", "nobody", "google")
    assert "functions.nobody.google.func_path" in caught.value.hint


def test_clients_are_spread_over_the_clusters_of_their_platform(loading: Loading):
    """Evenly, in blocks, in the file's order; the first clusters take what is left over."""
    clusters = {name: {"embedded": True} for name in ("z", "a", "m")}
    homes = [
        placement.cluster
        for placement in loading.of(
            {
                "providers.openwhisk": clusters,
                "fl.server_config.server_cluster_name": "gcf",
                "fl.clients_info.total_num_clients": 6,
                "fl.clients_info.ow_clients_count": 4,
            }
        ).placements()
    ]
    assert homes == ["z", "z", "a", "m", "gcf", "gcf"]


def test_clients_may_be_placed_by_cluster(loading: Loading):
    """The names say where; clients are numbered OpenWhisk first, whatever the order of the counts."""
    experiment = loading.of(
        {
            "fl.clients_info.ow_clients_count": 0,
            "fl.clients_info.gcf_clients_count": 0,
            "fl.clients_info.clients_per_cluster": {"gcf": 4, "ow": "1"},
            "providers.google.gcf.route": "direct",
        }
    )
    assert [tuple(placement) for placement in experiment.placements()] == [
        ("client_0", "ow", "direct"),
        *((f"client_{number}", "gcf", "direct") for number in range(1, 5)),
    ]


@pytest.mark.parametrize(("per_round", "least"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_half_a_round_is_enough_by_default(loading: Loading, per_round: int, least: int):
    """Rounded up, so never none."""
    assert loading.of({"fl.clients_info.num_clients_per_round": per_round}).learning.min_updates == least


def test_paths_are_relative_to_the_file(loading: Loading, monkeypatch: pytest.MonkeyPatch, tmp_path_factory):
    """Wherever the command is typed."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    (loading.folder / "my_model.py").touch()
    experiment = loading.of(
        {"fl.data_sampling.include": ["my_model.py"], "fl.data_sampling.model": "my_model:build"}
    )

    assert experiment.embedded.data_dir == loading.folder / ".fedkeeper"
    assert experiment.logs.folder == loading.folder / "logs"
    assert experiment.learning.data_sampling.include == (loading.folder / "my_model.py",)
    assert experiment.learning.data_spec().train_images.url == (loading.folder / "data.npz").as_uri()


def test_what_is_not_beside_the_file_was_shipped(loading: Loading):
    """The sample's data is found from any folder."""
    url = loading.of({"fl.training_test_data.train_images_url": "data/mnist-12k.npz"}).learning.data_spec()
    assert url.train_images.url == shipped("data/mnist-12k.npz").as_uri()
    assert find("data/mnist-12k.npz", folder=loading.folder) == ROOT / "data" / "mnist-12k.npz"
    with pytest.raises(ConfigError, match=r"pyproject\.toml did not come with"):
        shipped("pyproject.toml")


def test_an_installed_package_finds_what_it_brought(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Inside itself, and never in a folder `data` that somebody else has in site-packages."""
    package = tmp_path / "site-packages" / "fedkeeper"
    (package / "shipped" / "data").mkdir(parents=True)
    (tmp_path / "site-packages" / "data").mkdir()
    monkeypatch.setattr("fedkeeper.config.files.ROOTS", (package.parent, package / "shipped"))
    assert shipped("data") == package / "shipped" / "data"


def test_the_sample_of_an_installed_package_writes_where_the_user_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Not into site-packages; and it finds its data, which was installed beside it."""
    package = tmp_path / "site-packages" / "fedkeeper" / "shipped"
    (package / "data").mkdir(parents=True)
    shutil.copy(ROOT / "config-sample.yaml", package)
    (package / "data" / "mnist-12k.npz").touch()
    for module in ("files", "reading"):
        monkeypatch.setattr(f"fedkeeper.config.{module}.ROOTS", (tmp_path / "site-packages", package))
    monkeypatch.chdir(tmp_path)

    experiment = load(shipped("config-sample.yaml"), environment={})

    assert experiment.logs.folder == tmp_path / "logs"
    data = experiment.learning.data_spec().train_images.url
    assert data == (package / "data" / "mnist-12k.npz").as_uri()


def test_data_may_come_from_anywhere_but_a_pickle(loading: Loading):
    """Addresses, idx files, a function of the user's; arrays have names in .npz files only."""
    data = loading.of(
        {
            "fl.training_test_data": {
                "train_images_url": {"url": "https://x.org/a.npz?sig=1", "array": "img", "sha256": "ab" * 32},
                "train_labels_url": "https://x.org/train-labels-idx1-ubyte.gz",
                "test_images_url": "http://x.org/b.npy",
                "test_labels_url": "my_data:labels",
            }
        }
    ).learning.data_spec()
    assert data == wire.DataSpec(
        train_images=wire.Source(url="https://x.org/a.npz?sig=1", array="img", sha256="ab" * 32),
        train_labels=wire.Source(url="https://x.org/train-labels-idx1-ubyte.gz"),
        test_images=wire.Source(url="http://x.org/b.npy"),
        test_labels=wire.Source(url="my_data:labels"),
    )


def test_nothing_can_be_changed_afterwards(loading: Loading):
    """The config is read once."""
    experiment = loading()
    with pytest.raises(ValueError, match="frozen"):
        experiment.learning.limits.attempts_max = 5  # type: ignore[misc]


def test_lookups_suggest_the_near_name(loading: Loading):
    """For the command line, where names are typed."""
    experiment = loading()
    with pytest.raises(ConfigError, match="no cluster 'gfc'") as caught:
        experiment.cluster("gfc")
    assert caught.value.hint == "did you mean 'gcf'?"
    with pytest.raises(ConfigError) as caught:
        experiment.scenario("zzz")
    assert caught.value.hint == "known here: federated_learning"


def test_a_file_may_have_nothing_to_learn(loading: Loading):
    """Then functions can be deployed all the same, and learning says what is missing."""
    experiment = loading.of(
        {"scenarios": {"test": {"functions": {"nodeinfo": {"openwhisk": None, "google": {"memory": 256}}}}}}
    )
    with pytest.raises(ConfigError, match="nothing to learn"):
        _ = experiment.learning
    assert experiment.scenario("test").functions["nodeinfo"].openwhisk is not None


def test_a_resumed_run_is_known_by_its_digest(loading: Loading):
    """Secrets, ports, paths and deployment may change; what decides the outcome may not."""
    before = loading()
    same = {
        "embedded.fabric_port": 8123,
        "embedded.data_dir": "elsewhere",
        "logs.level": "debug",
        "fl.mongo_config.port": 27017,
        "fl.functions.fl_client.openwhisk.memory": 1024,
        "fl.limits.poll_interval_s": 0.1,
        "fl.limits.min_updates": 2,  # as the default
        "fl.seed": 0,
    }
    assert loading.of(same).digest() == before.digest()
    for path, value in {
        "name": "other",
        "seed": 1,
        "fl.seed": 1,
        "fl.stopping.rounds_max": 7,
        "fl.limits.attempts_max": 4,
        "fl.partition.alpha": 0.1,
        "providers.google.gcf.route": "direct",
    }.items():
        after = loading.of({path: value})
        assert after.digest() != before.digest(), path
        old, new = before.fingerprint(), after.fingerprint()
        differing = [key for key in new if old.get(key) != new[key]]
        assert len(differing) == 1, path
        assert differing[0].endswith(path.rpartition(".")[2])


def test_data_is_known_by_its_hash_where_it_has_one(loading: Loading):
    """The same bytes from another mirror are the same experiment."""
    here = {"url": "https://a.org/x.npz", "sha256": "0" * 64}
    there = {"url": "https://b.org/x.npz", "sha256": "0" * 64}
    key = "fl.training_test_data.train_images_url"
    assert loading.of({key: here}).digest() == loading.of({key: there}).digest()
    assert loading.of({key: here["url"]}).digest() != loading.of({key: there["url"]}).digest()


def test_a_moved_folder_is_the_same_experiment(loading: Loading, tmp_path_factory: pytest.TempPathFactory):
    """Data beside the file is known by its name there."""
    elsewhere = tmp_path_factory.mktemp("moved")
    (elsewhere / "data.npz").touch()
    assert Loading(elsewhere)().digest() == loading().digest()


def test_the_config_as_run_reads_back_as_itself(loading: Loading):
    """What is written to logs/ without secrets is a config, for an experiment that has none."""
    experiment = loading()
    again = loading.text(yaml.safe_dump(experiment.redacted()))
    assert again.redacted() == experiment.redacted()
    assert again.digest() == experiment.digest()


def test_the_small_config_stays_as_it_is(loading: Loading):
    """Tests change a copy."""
    loading.of({"name": "other"})
    assert SMALL["name"] == "small"


def test_a_function_that_the_file_does_not_mention_has_five_minutes():
    """The default is in seconds on both platforms, though a number in the file is milliseconds on one."""
    sample = load(shipped("config-sample.yaml"))
    for platform in ("openwhisk", "google"):
        assert sample.function("federated_learning", "nodeinfo", platform).timeout_s == 300
