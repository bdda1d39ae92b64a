"""Virtual nodes: several machines on one, for everybody without a cluster.

A node is a process tree in namespaces of its own (network, host name, mounts, process ids, IPC) with an address, an
sshd and a limited link to a bridge, which lives in a namespace too. Nothing of the host is edited: files that differ in
a node are mounted there. Everything ends with the node's first process, so nothing survives `down`, nor a crash.

    cluster = cluster.up("lab", 4, rate="1gbit", cores_per_node=1)
    subprocess.run(cluster.argv("a", ["hostname"]))
    cluster.down("lab")
"""
