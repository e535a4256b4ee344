"""Rules between keys of different sections. Each takes the file's right part and yields faults.

A value that has a fault of its own raises AtFaultItself when a rule reads it, which ends that rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedkeeper.config.base import near
from fedkeeper.config.experiment import place
from fedkeeper.config.faults import Fault
from fedkeeper.config.files import find
from fedkeeper.config.keeper_rules import KEEPER_RULES
from fedkeeper.config.providers import on_this_machine
from fedkeeper.config.scenario import SERVER_FUNCTIONS, Learning
from fedkeeper.platforms import PLATFORMS, describe, part

SHIPPED_FUNCTIONS = (*SERVER_FUNCTIONS, "fl_client", "nodeinfo")
_COUNTS = {platform: describe(platform).count_key for platform in PLATFORMS}


def learnings(config: Any) -> Iterator[tuple[str, Any]]:
    """The scenarios that are learned, with the path to each."""
    for name, scenario in config.scenarios.items():
        if scenario.section_class is Learning:
            yield f"scenarios.{name}", scenario


def platforms(config: Any) -> dict[str, str]:
    """Cluster -> platform."""
    return {name: platform for platform in PLATFORMS for name in getattr(config.providers, platform)}


def one_is_learned(config: Any) -> Iterator[Fault]:
    """A run is one experiment."""
    for at, _ in list(learnings(config))[1:]:
        yield Fault(at, "is a second scenario with clients; give each its own file and name")


def cluster_names_are_unique(config: Any) -> Iterator[Fault]:
    """Clusters are spoken of by name alone."""
    first: dict[str, str] = {}
    for platform in PLATFORMS:
        for name in getattr(config.providers, platform):
            other = first.setdefault(name, platform)
            if other != platform:
                whose = f"is also the name of {describe(other).a_cluster}; rename one of them"
                yield Fault(f"providers.{platform}.{name}", whose)
    if not first:
        below = " or ".join(PLATFORMS)
        yield Fault("providers", f"has no cluster; write one below {below}, e.g. `here: {{embedded: true}}`")


def server_cluster_exists(config: Any) -> Iterator[Fault]:
    """The managing functions run on a cluster of the file."""
    known = platforms(config)
    for at, learning in learnings(config):
        name = learning.server_config.server_cluster_name
        if name not in known:
            yield Fault(
                f"{at}.server_config.server_cluster_name", f"no cluster {name!r}; {near(name, known)}"
            )


def clients_add_up(config: Any) -> Iterator[Fault]:
    """Every client has a place."""
    for at, learning in learnings(config):
        clients = learning.clients_info
        by_platform = {key: getattr(clients, key) for key in _COUNTS.values()}
        given = [key for key, count in by_platform.items() if count]
        if clients.clients_per_cluster and given:
            yield Fault(
                f"{at}.clients_info.clients_per_cluster",
                f"places the clients, and so do {' and '.join(given)}; keep one way",
            )
            continue
        counts = clients.clients_per_cluster or by_platform
        placed, total = sum(counts.values()), clients.total_num_clients
        if placed != total:
            yield Fault(
                f"{at}.clients_info.total_num_clients",
                f"is {total}, but {' + '.join(counts)} is {placed}; make them equal",
            )


def clients_have_clusters(config: Any) -> Iterator[Fault]:
    """Clients are placed on clusters that the file has."""
    known = platforms(config)
    for at, learning in learnings(config):
        clients = learning.clients_info
        for name in clients.clients_per_cluster:
            if name not in known:
                yield Fault(
                    f"{at}.clients_info.clients_per_cluster.{name}", f"no such cluster; {near(name, known)}"
                )
        for platform, key in _COUNTS.items():
            if getattr(clients, key) and not getattr(config.providers, platform):
                yield Fault(
                    f"{at}.clients_info.{key}",
                    f"is {getattr(clients, key)}, but providers.{platform} has no cluster; add one",
                )


def rounds_are_possible(config: Any) -> Iterator[Fault]:
    """No round asks for more clients than there are."""
    for at, learning in learnings(config):
        clients = learning.clients_info
        if clients.num_clients_per_round > clients.total_num_clients:
            yield Fault(
                f"{at}.clients_info.num_clients_per_round",
                f"is {clients.num_clients_per_round}, but there are {clients.total_num_clients} clients"
                f" (total_num_clients); write at most {clients.total_num_clients}",
            )


def enough_can_answer(config: Any) -> Iterator[Fault]:
    """No round waits for more updates than it asked for."""
    for at, learning in learnings(config):
        least, asked = learning.limits.min_updates, learning.clients_info.num_clients_per_round
        if least and least > asked:
            yield Fault(
                f"{at}.limits.min_updates",
                f"is {least}, but a round asks {asked} clients (num_clients_per_round); write {asked}",
            )


def polls_are_ordered(config: Any) -> Iterator[Fault]:
    """The shortest pause is not longer than the longest."""
    for at, learning in learnings(config):
        least, most = learning.limits.poll_interval_s, learning.limits.poll_interval_max_s
        if least > most:
            yield Fault(
                f"{at}.limits.poll_interval_s",
                f"is {least:g}, more than poll_interval_max_s, which is {most:g}; write at most {most:g}",
            )


def sizes_agree(config: Any) -> Iterator[Fault]:
    """An image has as many numbers as its shape says."""
    for at, learning in learnings(config):
        data = learning.data_sampling
        size = data.input_shape_x * data.input_shape_y * data.input_channels
        if size != data.input_size:
            yield Fault(
                f"{at}.data_sampling.input_size",
                f"is {data.input_size}, but input_shape_x * input_shape_y * input_channels is {size};"
                f" write {size}",
            )


def store_is_one(config: Any) -> Iterator[Fault]:
    """The store is embedded or somebody's, not both nor neither."""
    for at, learning in learnings(config):
        mongo = learning.mongo_config
        if mongo.embedded and mongo.url:
            yield Fault(f"{at}.mongo_config.url", "is given, and embedded: true as well; keep one of the two")
        if not mongo.embedded and not mongo.url:
            yield Fault(f"{at}.mongo_config.url", "is missing; write host:port, or embedded: true")
        if bool(mongo.username) != bool(mongo.password):
            absent = "password" if mongo.username else "username"
            other = "username" if mongo.username else "password"
            yield Fault(
                f"{at}.mongo_config.{absent}", f"is missing, but {other} is there; write both or neither"
            )


def elsewhere_is_served(config: Any) -> Iterator[Fault]:
    """Clusters on other machines reach neither our mongod nor our files."""
    for at, learning in learnings(config):
        used = _used(config, learning)
        far = [
            name
            for platform in PLATFORMS
            for name, cluster in getattr(config.providers, platform).items()
            if name in used and _is_far(cluster, part(platform, "rules").address(cluster))
        ]
        if not far:
            continue
        if learning.mongo_config.embedded:
            yield Fault(
                f"{at}.mongo_config.embedded",
                f"a mongod on this machine's loopback cannot be reached from {', '.join(far)}; write url",
            )
        for key in ("train_images_url", "train_labels_url", "test_images_url", "test_labels_url"):
            if getattr(learning.training_test_data, key).url.startswith("file:"):
                yield Fault(
                    f"{at}.training_test_data.{key}",
                    f"a file on this machine cannot be read from {', '.join(far)};"
                    " write an https:// address, or module:function",
                )


def _is_far(cluster: Any, address: str) -> bool:
    return not cluster.embedded and bool(address) and not on_this_machine(address)


def _used(config: Any, learning: Any) -> set[str]:
    """The clusters that have a part in learning."""
    return {learning.server_config.server_cluster_name, *place(learning.clients_info, config.providers)}


def functions_are_there(config: Any) -> Iterator[Fault]:
    """Every function that is named exists somewhere."""
    for name, scenario in config.scenarios.items():
        for function, places in scenario.functions.items():
            at = f"scenarios.{name}.functions.{function}"
            for platform in PLATFORMS:
                settings = getattr(places, platform)
                if settings is None or settings.func_path or function in SHIPPED_FUNCTIONS:
                    continue
                try:
                    find(f"functions/{function}", folder=config.folder)
                except ValueError:
                    yield Fault(
                        f"{at}.{platform}.func_path",
                        f"is missing, and there is no folder functions/{function}; write where it is,"
                        f" or if it is one of ours: {near(function, SHIPPED_FUNCTIONS)}",
                    )


def servers_are_known(config: Any) -> Iterator[Fault]:
    """The server functions are those of the protocol; clients without credentials have a forwarder."""
    for at, learning in learnings(config):
        named = learning.server_config.server_manager_functions
        path = f"{at}.server_config.server_manager_functions"
        for function in named:
            if function not in SERVER_FUNCTIONS:
                yield Fault(path, f"{function!r} is no server function; {near(function, SERVER_FUNCTIONS)}")
        needed = list(SERVER_FUNCTIONS[:2])
        clusters = {
            name: cluster
            for platform in PLATFORMS
            for name, cluster in getattr(config.providers, platform).items()
        }
        clients_on = place(learning.clients_info, config.providers)
        if any(clusters[name].route == "invoker" for name in clients_on):
            needed.append(SERVER_FUNCTIONS[2])
        for function in needed:
            if function not in named:
                why = " (a cluster has route: invoker)" if function == SERVER_FUNCTIONS[2] else ""
                yield Fault(path, f"lacks {function}{why}; add it, or leave the key out")


def client_function_is_known(config: Any) -> Iterator[Fault]:
    """The clients' function is one of ours, or described below `functions`."""
    for at, learning in learnings(config):
        for function in learning.clients_info.client_functions:
            known = dict.fromkeys(("fl_client", *learning.functions))
            if function not in known:
                yield Fault(
                    f"{at}.clients_info.client_functions",
                    f"no function {function!r}; {near(function, known)}",
                )


RULES = (
    one_is_learned,
    cluster_names_are_unique,
    *(rule for platform in PLATFORMS for rule in part(platform, "rules").RULES),
    server_cluster_exists,
    clients_add_up,
    clients_have_clusters,
    rounds_are_possible,
    enough_can_answer,
    polls_are_ordered,
    sizes_agree,
    store_is_one,
    elsewhere_is_served,
    functions_are_there,
    servers_are_known,
    client_function_is_known,
    *KEEPER_RULES,
)
