#!/bin/bash
# Installs, on Debian 12, what Kopek and its tests run. Nothing is started by it. Quick when all is there.
set -euo pipefail

packages=(
    # to build
    build-essential pkg-config protobuf-compiler libprotobuf-dev libseccomp-dev
    # what a server runs
    mariadb-server mariadb-client mariadb-backup galera-4 socat etcd-server etcd-client keepalived nftables iproute2
    e2fsprogs xfsprogs util-linux procps
    # images, the demo's site, measurements
    mmdebstrap wordpress mediawiki wordpress-theme-twentytwentythree libjs-cropper libjs-underscore php-getid3 python3 curl wrk nginx-light haproxy sysbench
    # other people's test suites, run through sql
    mariadb-test mariadb-test-data patch python3-pip
)

[ "$(id -u)" = 0 ] || { echo "kopek: setup installs packages and makes network namespaces; run it as root" >&2; exit 2; }

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
    echo "installing: ${missing[*]}"
    # A daemon must not start by itself on install: policy-rc.d says 101, "action forbidden" (Debian
    # invoke-rc.d). An administrator's own policy is put back afterwards.
    policy=/usr/sbin/policy-rc.d
    kept=$(mktemp)
    if [ -e "$policy" ]; then cp -a "$policy" "$kept"; else rm "$kept"; fi
    restore() { if [ -e "$kept" ]; then mv "$kept" "$policy"; else rm -f "$policy"; fi; }
    trap restore EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

command -v cargo > /dev/null || { echo "kopek: cargo is missing; install Rust (rustup) first" >&2; exit 2; }
for tool in nextest deny; do
    cargo "$tool" --version > /dev/null 2>&1 || cargo install --locked "cargo-$tool"
done
