# One node of a cluster: both engines, the pretrained weights, and an ssh server on port 2222 for the launchers.
# It is set up by scripts/setup.sh, the same script that sets up a machine without containers.
#
#   docker build -t anomaly-distbench .
#   GPUs: docker build --build-arg BASE=IMAGE --build-arg GPU_CAPABILITIES=9.0 -t anomaly-distbench:gpu .
#         where IMAGE is an Ubuntu 24.04 or Debian 12 image with the CUDA toolkit (a "devel" image)
#
# Keys are mounted when a node starts, never baked in (scripts/container/node.sh):
#   ssh-keygen -q -t ed25519 -N '' -f keys/id_ed25519
#   docker run --network host --ipc host -v "$PWD/keys:/keys:ro" anomaly-distbench
ARG BASE=debian:bookworm
FROM ${BASE}
ARG GPU_CAPABILITIES=
ENV SETUP_BROWSER=no
WORKDIR /opt/anomaly-distbench

# System packages on their own, so that a change of the code does not fetch them again.
COPY scripts/lib.sh scripts/versions.sh scripts/system_packages.sh scripts/
RUN bash scripts/system_packages.sh && rm -rf /var/lib/apt/lists/*

COPY . .
RUN XDG_CACHE_HOME=/tmp/cache bash scripts/setup.sh && rm -rf /tmp/cache /root/.cache .setup.log .setup.lock

# The package brings host keys of its own: an image must not carry keys, every node makes or mounts its own.
RUN rm -f /etc/ssh/ssh_host_* && mkdir -p /run/sshd && cp scripts/container/ssh_config /etc/ssh/ssh_config.d/node.conf

ENV PATH=/opt/anomaly-distbench/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENV OMP_NUM_THREADS=1
EXPOSE 2222
ENTRYPOINT ["bash", "/opt/anomaly-distbench/scripts/container/node.sh"]
