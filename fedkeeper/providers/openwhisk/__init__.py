"""Apache OpenWhisk."""

from fedkeeper.platforms import Platform

PLATFORM = Platform(
    title="OpenWhisk",
    a_cluster="an OpenWhisk cluster",
    these_clusters="OpenWhisk clusters",
    count_key="ow_clients_count",
    option=("-o", "--ow_providers_list"),
    entry_file="__main__.py",
    node_entry_file="index.js",
    secret_keys=("ow_auth",),
)
