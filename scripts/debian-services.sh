#!/usr/bin/env bash
# What the tests use beside Python: PostgreSQL's programs, Chromium and Java, and what unpack-debian.sh gets. Root on
# Debian gets what is missing installed; anybody else is told about it, and the tests that need it are skipped.
set -euo pipefail

missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || missing+=(chromium)
# STILTS is a Java program.
command -v java >/dev/null || missing+=(default-jre-headless)
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
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold "${missing[@]}" >/dev/null
else
    echo "not installed: ${missing[*]}; the tests that need them are skipped (Debian: apt-get install ${missing[*]})"
fi
exec "$(dirname "$0")/unpack-debian.sh"
