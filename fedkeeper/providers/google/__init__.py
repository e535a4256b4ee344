"""Google Cloud Functions, second generation."""

from fedkeeper.platforms import Platform

PLATFORM = Platform(
    title="Google Cloud Functions",
    a_cluster="a Google cluster",
    these_clusters="Google clusters",
    count_key="gcf_clients_count",
    option=("-g", "--gcf_providers_list"),
    entry_file="main.py",
    secret_keys=("private_key",),
)
