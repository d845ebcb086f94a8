"""A Ray cluster of three nodes with one CPU each, as processes here: prints its address; each input line kills a node.

Executed with a folder for Ray, whose path must be short, and one for what the nodes store.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "600",  # of a busy machine
}

from ray.cluster_utils import Cluster

folder, stores = sys.argv[1:]
Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)  # Ray writes an address there
settings = [
    {"num_cpus": 1, "object_store_memory": 80_000_000, "env_vars": {"NIGHTSHIFT_STORE": f"{stores}/{i}"}}
    for i in range(3)
]
head = {"temp_dir": folder, "include_dashboard": False, **settings[0]}
cluster = Cluster(initialize_head=True, head_node_args=head)
try:
    nodes = [cluster.add_node(**each) for each in settings[1:]]
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
finally:
    cluster.shutdown()
