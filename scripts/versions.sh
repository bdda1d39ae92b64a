# What is pinned outside constraints.txt, because its build depends on the machine. Sourced by the other scripts.
# shellcheck shell=bash disable=SC2034

TORCH_VERSION=2.13.0       # installed where no suitable torch is there yet
TORCH_MINIMUM=2.11         # an already installed GPU torch of this version or newer is used as it is
PYTHON_MINIMUM=3.11        # first supported version
PYTHON_BELOW=3.13          # first version that is too new

HOROVOD_VERSION=0.28.1
# Hash of the released source archive, so that what is compiled is what was released.
HOROVOD_SHA256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
HOROVOD_RECIPE=1           # raise it when scripts/horovod_wheel.sh builds differently: cached wheels are then built anew
