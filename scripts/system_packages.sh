#!/usr/bin/env bash
# Installs the system packages that are missing, on Debian and Ubuntu, as root or through passwordless sudo;
# anywhere else it says in one line what to install. Nothing is installed when nothing is missing (then it takes a moment).
#
# Two lists: without the needed ones nothing can be built or run; without the wanted ones some commands and tests are
# skipped with a reason (several nodes, virtual nodes, looking at the report in a browser). SETUP_EVERYTHING=yes (CI) makes
# a wanted package that is not to be had an error: tests that are skipped there would look like tests that pass.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/versions.sh
. scripts/lib.sh
LOG=${LOG:-$PWD/.setup.log}

needed=() wanted=()
need() { have "$1" || needed+=("${@:2}"); }     # need COMMAND PACKAGE...
want() { have "$1" || wanted+=("${@:2}"); }

need mpirun openmpi-bin
need mpicc libopenmpi-dev
need cmake cmake
need g++ g++
need make make
need strip binutils
need ssh openssh-client
want ninja ninja-build
want pdsh pdsh
want ip iproute2
[ -x /usr/sbin/sshd ] || want sshd openssh-server
if [ "${SETUP_BROWSER:-yes}" != no ]; then
    have chromium || have google-chrome || wanted+=(chromium fonts-liberation)
    have chromedriver || wanted+=(chromium-driver)
fi

# An interpreter that can make a virtual environment (Debian splits ensurepip off) and compile extensions (headers).
if python=$(find_python); then
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null || needed+=("$version-venv")
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || needed+=("$version-dev")
elif ! have python3; then
    needed+=(python3 python3-venv python3-dev)
fi

[ ${#needed[@]} -gt 0 ] || [ ${#wanted[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if have sudo && sudo -n true 2>/dev/null; then as_root=(sudo -n); else as_root=(refuse); fi
fi
if ! have apt-get || [ "${as_root[*]:-}" = refuse ]; then
    [ ${#needed[@]} -eq 0 ] || die "missing system packages; install them as root (Debian/Ubuntu names): ${needed[*]} ${wanted[*]}"
    say "not installed, so what needs it is skipped (Debian/Ubuntu names): ${wanted[*]}"
    exit 0
fi

# env and timeout come after sudo, which would drop the variables. No questions, bounded waits for locks and the network.
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive timeout --foreground 1200 \
        apt-get -q -o Acquire::Retries=3 -o Acquire::http::Timeout=60 -o DPkg::Lock::Timeout=300 "$@"
}
step "refreshing the package lists" apt update
if [ ${#needed[@]} -gt 0 ]; then
    step "installing system packages: ${needed[*]}" apt install -y --no-install-recommends "${needed[@]}"
fi
# One by one: a wanted package that this distribution lacks (Chromium is a snap on Ubuntu) must not stop the others.
for package in "${wanted[@]}"; do
    # Not through a pipe into grep -q, which leaves early: with pipefail, apt-cache's broken pipe looks like "not found".
    if [[ $(apt-cache policy "$package" 2>/dev/null) =~ Candidate:\ [0-9] ]]; then
        step "installing system package: $package" apt install -y --no-install-recommends "$package"
    elif [ "${SETUP_EVERYTHING:-no}" = yes ]; then
        die "$package is not to be had from this system's package lists, and SETUP_EVERYTHING=yes asks for it"
    else
        say "$package is not to be had from this system's package lists; what needs it is skipped"
    fi
done
