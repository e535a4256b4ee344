"""deploy.py and the console script: which functions on which clusters, typos, metadata."""

from __future__ import annotations

import json

import pytest

from fedkeeper.cli.selection import Choice, Inventory, select
from fedkeeper.deployment import Target
from fedkeeper.errors import ConfigError, ProviderUnavailable, RequestRefused

BOTH, OW = frozenset({"openwhisk", "google"}), frozenset({"openwhisk"})
INVENTORY = Inventory(
    clusters={"ow_a": "openwhisk", "ow_b": "openwhisk", "gcf_a": "google"},
    scenarios={"learn": {"fl_client": BOTH, "fl_server_init": OW}, "test": {"nodeinfo": BOTH}},
)


def names(chosen):
    """Targets as scenario:cluster/function."""
    return {f"{name}:{one.cluster}/{one.function}" for name, targets in chosen.items() for one in targets}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (
            Choice(all_clusters=True),
            {
                "learn:ow_a/fl_client",
                "learn:ow_b/fl_client",
                "learn:gcf_a/fl_client",
                "learn:ow_a/fl_server_init",
                "learn:ow_b/fl_server_init",
                "test:ow_a/nodeinfo",
                "test:ow_b/nodeinfo",
                "test:gcf_a/nodeinfo",
            },
        ),
        (Choice(clusters={"openwhisk": ["ow_b"]}, scenario="test"), {"test:ow_b/nodeinfo"}),
        (
            Choice(clusters={"openwhisk": ["ow_a"], "google": ["gcf_a"]}, functions=["fl_client"]),
            {"learn:ow_a/fl_client", "learn:gcf_a/fl_client"},
        ),
        (
            Choice(all_clusters=True, functions=["fl_server_init"], scenario="learn"),
            {"learn:ow_a/fl_server_init", "learn:ow_b/fl_server_init"},
        ),
        (
            Choice(clusters={"google": ["gcf_a", "gcf_a"]}, functions=["nodeinfo", "nodeinfo"]),
            {"test:gcf_a/nodeinfo"},
        ),
    ],
)
def test_the_options_choose_functions_by_cluster_and_scenario(choice, expected):
    """A function goes to the clusters that it is written for; nothing is chosen twice."""
    chosen = select(INVENTORY, choice)
    assert names(chosen) == expected
    assert sum(len(targets) for targets in chosen.values()) == len(expected)


@pytest.mark.parametrize(
    ("choice", "problem", "hint"),
    [
        (Choice(clusters={"openwhisk": ["ow_c"]}), "unknown openwhisk cluster 'ow_c'", "did you mean"),
        (Choice(clusters={"google": ["gfc_a"]}), "unknown google cluster 'gfc_a'", "did you mean 'gcf_a'?"),
        (Choice(clusters={"google": ["zzz"]}), "unknown google cluster 'zzz'", "known: gcf_a"),
        (Choice(clusters={"openwhisk": ["gcf_a"]}), "cluster 'gcf_a' is a Google cluster", "name it with -g"),
        (Choice(clusters={"google": ["ow_a"]}), "cluster 'ow_a' is an OpenWhisk cluster", "name it with -o"),
        (Choice(all_clusters=True, scenario="lern"), "unknown scenario 'lern'", "did you mean 'learn'?"),
        (
            Choice(all_clusters=True, functions=["nodeinf"]),
            "unknown function 'nodeinf'",
            "did you mean 'nodeinfo'?",
        ),
        (
            Choice(all_clusters=True, scenario="test", functions=["fl_client"]),
            "unknown function in scenario test: 'fl_client'",
            "known: nodeinfo",
        ),
        (
            Choice(clusters={"google": ["gcf_a"]}, functions=["fl_server_init"]),
            "function 'fl_server_init' has no entry for google",
            "it is written for openwhisk",
        ),
    ],
)
def test_wrong_names_suggest_the_near_one(choice, problem, hint):
    """Exit code 2, before anything is sent."""
    with pytest.raises(ConfigError) as caught:
        select(INVENTORY, choice)
    assert str(caught.value) == problem
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_function_of_two_scenarios_wants_to_know_which():
    """They may be different programs of one name."""
    twice = Inventory(clusters={"ow": "openwhisk"}, scenarios={"a": {"f": OW}, "b": {"f": OW}})
    with pytest.raises(ConfigError, match="in several scenarios: a, b"):
        select(twice, Choice(all_clusters=True))
    assert select(twice, Choice(all_clusters=True, scenario="b")) == {
        "b": (Target(cluster="ow", function="f"),)
    }


def test_everything_goes_everywhere_as_the_ancestor_had_it(call, world):
    """`deploy.py -a -d`: every function of every scenario, under its plain name, one session a scenario."""
    result = call("deploy", "-a", "-d")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "17 function(s): 17 created"
    assert set(world.platforms["gcf_a"].functions) == {
        "fl_client",
        "fl_server_init",
        "fl_server_aggregator",
        "fl_invoker_weights_update",
        "nodeinfo",
    }
    everywhere = ("ow_a", "ow_b", "gcf_a")
    assert world.opened == [("federated_learning", everywhere), ("test", everywhere)]
    assert world.closed == 2


def test_chosen_clusters_and_functions_only(call, world):
    """-o, -g, -s, -f and the ancestor's long options."""
    result = call(
        "deploy",
        "--ow_providers_list", "ow_b",
        "--gcf_providers_list", "gcf_a",
        "--scenario_name", "test",
        "--functions_list", "nodeinfo, only_ow",
        "--deploy",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [sorted(platform.functions) for platform in world.platforms.values()] == [
        [],
        ["nodeinfo", "only_ow"],
        ["nodeinfo"],
    ]
    removed = call("deploy", "-o", "ow_b", "-f", "nodeinfo", "-r")
    assert removed.stdout.splitlines() == ["removed   ow_b/nodeinfo", "1 function(s): 1 removed"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-a"], "say what to do"),
        (["-a", "-d", "-r"], "say what to do"),
        (["-a", "-r", "-m"], "say what to do"),
        (["-d"], "say where"),
        (["-d", "-s", "test"], "say on which clusters"),
        (["-a", "-o", "ow_a", "-d"], "leave out -o and -g"),
        (["-o", "ow_a,,ow_b", "-d"], "one of them is empty"),
    ],
)
def test_contradictions_are_usage_errors(call, world, arguments, problem):
    """Exit code 2, and nothing was opened."""
    result = call("deploy", *arguments)
    assert result.exit_code == 2
    assert problem in " ".join(result.stderr.split())
    assert world.opened == []


def test_all_scenarios_are_tried_although_one_function_fails(call, world):
    """The partial failure of the first scenario does not spare the second."""
    world.platforms["ow_a"].failures["fl_client"] = [RequestRefused("ow_a", "fl_client", "no")]
    result = call("deploy", "-o", "ow_a", "-d")
    assert result.exit_code == 1
    assert "nodeinfo" in world.platforms["ow_a"].functions
    assert "1 of 6 function(s) failed: ow_a/fl_client" in result.stderr


def test_an_unreachable_cluster_fails_its_functions_only(call, world):
    """And names no more than five of them in the error."""
    world.platforms["ow_a"].list_failures = [
        ProviderUnavailable("ow_a", "", "connection refused", hint="is it up?") for _ in range(2)
    ]
    result = call("deploy", "-a", "-d", "-s", "federated_learning")
    assert result.exit_code == 1
    assert "4 of 12 function(s) failed" in result.stderr
    assert result.stdout.count("hint: is it up?") == 1
    assert len(world.platforms["gcf_a"].functions) == 4


def test_metadata_is_saved_as_json(call, world, tmp_path):
    """-m: the printed file holds what the platforms say of each function that is there."""
    call("deploy", "-a", "-d", "-f", "nodeinfo")
    del world.platforms["ow_b"].functions["nodeinfo"]
    result = call("deploy", "-a", "-m", "-f", "nodeinfo")
    assert result.exit_code == 0, result.output
    path = tmp_path / "logs" / "functions-mnist.json"
    assert f"saved 2 function(s) to {path}" in result.stdout
    assert "absent    ow_b/nodeinfo" in result.stdout
    saved = json.loads(path.read_text())
    assert saved["experiment"] == "mnist"
    assert saved["functions"][0] == {
        "cluster": "ow_a",
        "platform": "openwhisk",
        "function": "nodeinfo",
        "state": "active",
        "version": "0.0.1",
        "digest": "d1",
        "url": "https://ow_a.example/nodeinfo",
        "updated": "2023-11-14T22:13:20+00:00",
        "message": "",
        "details": {"memory": 256},
    }


def test_metadata_that_cannot_be_written_is_an_error(call, tmp_path):
    """Here the file is the whole point."""
    (tmp_path / "taken").write_text("")
    result = call("deploy", "-a", "-m", "-f", "nodeinfo", "--output", str(tmp_path / "taken" / "x.json"))
    assert result.exit_code == 1
    assert "not written" in result.stderr


def test_the_console_script_does_the_same(call, world):
    """fedkeeper deploy | functions | remove | run: the experiment's, or with -a plain ones."""
    assert call("fedkeeper", "deploy").stdout.splitlines()[-1] == "5 function(s): 5 created"
    assert "active    gcf_a/client_2" in call("fedkeeper", "functions").stdout
    assert call("fedkeeper", "remove").stdout.splitlines()[-1] == "5 function(s): 5 removed"
    assert call("fedkeeper", "deploy", "-a", "-f", "nodeinfo").stdout.splitlines()[-1].endswith("3 created")
    assert call("fedkeeper", "deploy", "-f", "nodeinfo").exit_code == 2
    ended = call("fedkeeper", "run")
    assert ended.exit_code == 0
    assert "finished: the target accuracy" in ended.stdout


def test_the_sample_is_written_once(call, tmp_path, monkeypatch):
    """`fedkeeper sample` gives a start; it does not replace what the user wrote."""
    shipped = tmp_path / "shipped.yaml"
    shipped.write_text("name: sample\n")
    monkeypatch.setattr("fedkeeper.cli.commands.shipped", lambda _: shipped)

    first = call("fedkeeper", "sample")
    assert first.exit_code == 0, first.output
    assert (tmp_path / "config-sample.yaml").read_text() == "name: sample\n"
    (tmp_path / "config-sample.yaml").write_text("mine")
    again = call("fedkeeper", "sample")
    assert again.exit_code == 2
    assert "--force replaces it" in again.stderr
    assert (tmp_path / "config-sample.yaml").read_text() == "mine"
    assert call("fedkeeper", "sample", "--force").exit_code == 0
    assert call("fedkeeper", "sample", "no/such/folder.yaml").exit_code == 2


@pytest.mark.parametrize(("command", "arguments"), [("main", []), ("deploy", []), ("fedkeeper", ["run"])])
def test_help_names_every_option(call, command, arguments):
    """-h and --help are the same."""
    short, long = call(command, *arguments, "-h"), call(command, *arguments, "--help")
    assert short.exit_code == 0
    assert short.stdout == long.stdout
    assert "--configfile" in short.stdout
