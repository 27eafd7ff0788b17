#!/bin/bash
# The edge against nginx and HAProxy: small responses, keep-alive, one origin, all on this machine, in one run.
# The numbers depend on the machine; compare the ratios. The edge goes one step further than the others: its
# requests pass a gate (here a plain relay) on the way to the origin, as they do in a cell.
#
# PROFILE=release|dev   how the edge is built (release)
# ROUNDS, SECONDS_EACH  rounds and seconds per measurement (3, 5); the median round counts
set -euo pipefail
cd "$(dirname "$0")/.."
PROFILE=${PROFILE:-release} ROUNDS=${ROUNDS:-3} SECONDS_EACH=${SECONDS_EACH:-5}

for tool in nginx haproxy wrk; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install nginx-light haproxy wrk" >&2; exit 1; }
done

cargo build --quiet --profile "$PROFILE" -p kopek-edge --example alone
target=${CARGO_TARGET_DIR:-target}
binary=$target/$([ "$PROFILE" = dev ] && echo debug || echo "$PROFILE")/examples/alone

folder=$(mktemp -d)
chmod 755 "$folder"
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$folder"
}
trap finish EXIT

origin=18180 edge=18181 nginx=18182 haproxy=18183
cores=$(nproc)

cat >"$folder/origin.conf" <<EOF
worker_processes 1; daemon off; pid $folder/origin.pid; error_log $folder/origin.err;
events { worker_connections 1024; }
http {
    access_log off; keepalive_requests 1000000;
    server { listen 127.0.0.1:$origin backlog=1024; location / { return 200 "hello\n"; } }
}
EOF
cat >"$folder/nginx.conf" <<EOF
worker_processes $cores; daemon off; pid $folder/nginx.pid; error_log $folder/nginx.err;
events { worker_connections 1024; }
http {
    access_log $folder/nginx.log combined buffer=64k flush=1s; keepalive_requests 1000000;
    upstream origin { server 127.0.0.1:$origin; keepalive 32; keepalive_requests 1000000; }
    server {
        listen 127.0.0.1:$nginx reuseport;
        location / {
            proxy_pass http://origin; proxy_http_version 1.1;
            proxy_set_header Connection ""; proxy_set_header Host \$http_host;
            proxy_set_header X-Forwarded-For \$remote_addr;
        }
    }
}
EOF
cat >"$folder/haproxy.cfg" <<EOF
global
    nbthread $cores
    maxconn 2000
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
    option forwardfor
    http-reuse always
listen bench
    bind 127.0.0.1:$haproxy
    server origin 127.0.0.1:$origin
EOF

nginx -c "$folder/origin.conf" & pids+=($!)
nginx -c "$folder/nginx.conf" & pids+=($!)
haproxy -f "$folder/haproxy.cfg" -db & pids+=($!)
"$binary" "$edge" "127.0.0.1:$origin" >"$folder/edge.out" 2>&1 & pids+=($!)
edge_pid=$!

for port in $origin $edge $nginx $haproxy; do
    for _ in $(seq 200); do
        [ "$(curl -s "http://127.0.0.1:$port/" || true)" = hello ] && continue 2
        sleep 0.05
    done
    echo "nothing answers on port $port" >&2
    cat "$folder"/*.err "$folder/edge.out" >&2
    exit 1
done

# Requests per second and p99 of one round, as "RPS P99 BAD".
measure() {
    wrk -t2 -c32 -d"${SECONDS_EACH}s" --latency "http://127.0.0.1:$1/" | awk '
        /99%/ { p99 = $2 }
        /Requests\/sec/ { rps = $2 }
        /Non-2xx|Socket errors/ { bad = 1 }
        END { print rps, p99, bad + 0 }'
}

declare -A rounds
for _ in $(seq "$ROUNDS"); do
    for name in origin edge nginx haproxy; do
        rounds[$name]+="$(measure "${!name}")"$'\n'
    done
done

median() { sort -n <<<"${rounds[$1]%$'\n'}" | sed -n "$(((ROUNDS + 1) / 2))p"; }
read -r edge_rps _ _ <<<"$(median edge)"
printf '%-10s %12s %10s %14s\n' through requests/s p99 'edge ÷ this'
for name in origin nginx haproxy edge; do
    read -r rps p99 _ <<<"$(median "$name")"
    printf '%-10s %12.0f %10s %14.2f\n' "$name" "$rps" "$p99" "$(awk "BEGIN { print $edge_rps / $rps }")"
done
awk '/VmRSS/ { printf "edge with its gate: %.0f MB resident\n", $2 / 1024 }' "/proc/$edge_pid/status"
if grep -q ' 1$' <<<"${rounds[edge]}"; then
    echo "the edge failed requests" >&2
    exit 1
fi
