#!/usr/bin/env bash
# What the tests use beside Python: PostgreSQL's programs, Chromium, Java, sshd and Slurm, and what unpack-debian.sh gets.
# Root on Debian gets what is missing installed; anybody else is told about it, and the tests that need it are skipped.
set -euo pipefail

missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || missing+=(chromium)
# STILTS is a Java program.
command -v java >/dev/null || missing+=(default-jre-headless)
# A login node of the tests' own.
[[ -x /usr/sbin/sshd ]] || missing+=(openssh-server)
# A cluster of the tests' own: controller, nodes, commands, authentication, accounting and its database.
for package in slurmctld slurmd slurmdbd munge; do
    program=${package/%munge/munged}
    [[ -x /usr/sbin/$program ]] || command -v "$program" >/dev/null || missing+=("$package")
done
command -v sbatch >/dev/null || missing+=(slurm-client)
[[ -x /usr/sbin/mariadbd ]] || command -v mariadbd >/dev/null || missing+=(mariadb-server)
if ((${#missing[@]} == 0)); then
    exec "$(dirname "$0")/unpack-debian.sh"
fi
if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # The package would otherwise make and start a cluster of its own.
    if [[ ! -e /etc/postgresql-common/createcluster.conf ]]; then
        mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    fi
    # Nor may a package start a service: tests start their own. Whoever has a policy already keeps it.
    if [[ ! -e /usr/sbin/policy-rc.d ]]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
    fi
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold "${missing[@]}" >/dev/null
else
    echo "not installed: ${missing[*]}; the tests that need them are skipped (Debian: apt-get install ${missing[*]})"
fi
"$(dirname "$0")/unpack-debian.sh"
