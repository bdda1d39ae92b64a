#!/usr/bin/env bash
# Starts a node: takes the mounted keys, starts its ssh server, then runs the given command or waits for launchers.
#
#   node.sh                        be a node
#   node.sh harness run ...        be a node and start something from here
#
# The key folder ($NODE_KEYS, /keys) holds id_ed25519 and id_ed25519.pub, the same pair on every node of the cluster.
# Optional: authorized_keys (else the .pub), ssh_host_ed25519_key (else one is made), known_hosts (then no unknown host is trusted).
set -euo pipefail
keys=${NODE_KEYS:-/keys}
here=$(cd "$(dirname "$0")" && pwd)
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

if [ ! -r "$keys/id_ed25519" ] || [ ! -r "$keys/id_ed25519.pub" ]; then
    die "no key pair at $keys: make one with \`ssh-keygen -t ed25519 -N '' -f keys/id_ed25519\` and mount it: -v \"\$PWD/keys:/keys:ro\""
fi
# Copies with the rights that ssh insists on, whoever owns the mounted files; /run is not part of the image.
umask 077
mkdir -p /run/node /run/sshd
cp "$keys/id_ed25519" /run/node/id
if [ -r "$keys/authorized_keys" ]; then cp "$keys/authorized_keys" /run/node/authorized_keys
else cp "$keys/id_ed25519.pub" /run/node/authorized_keys; fi
if [ -r "$keys/ssh_host_ed25519_key" ]; then cp "$keys/ssh_host_ed25519_key" /run/node/host_key
elif [ ! -e /run/node/host_key ]; then ssh-keygen -q -t ed25519 -N '' -f /run/node/host_key; fi
if [ -r "$keys/known_hosts" ]; then
    cp "$keys/known_hosts" /run/node/known_hosts
    sed -i 's/StrictHostKeyChecking accept-new/StrictHostKeyChecking yes/' /etc/ssh/ssh_config.d/node.conf
fi
chmod 600 /run/node/*
umask 022

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
if [ $# -eq 0 ]; then
    exec /usr/sbin/sshd -D -e -f "$here/sshd_config"
fi
/usr/sbin/sshd -f "$here/sshd_config"
exec "$@"
