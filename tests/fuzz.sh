#!/bin/bash
# Fuzzes every target of every crates/*/fuzz for so many seconds each. What was found before lies in the corpus
# and is tried first. A crash exits 1 and leaves its input in crates/*/fuzz/artifacts.
#   tests/fuzz.sh SECONDS [CORPUS]      CORPUS: where new inputs are kept between runs
set -euo pipefail

seconds=${1:?"usage: tests/fuzz.sh SECONDS [CORPUS]"}
cd "$(dirname "$0")/.."
kept=${2:-$(mktemp -d)}
[ $# -ge 2 ] || trap 'rm -rf "$kept"' EXIT

# 0.13 is the first whose own lock file builds with a stable compiler of this age.
cargo fuzz --version > /dev/null 2>&1 || cargo install --locked cargo-fuzz --version '^0.13'

# cargo-fuzz asks for a nightly compiler only for what this lets the stable one do too. No sanitizer: what we
# fuzz is safe Rust, and it runs several times faster without. Its build products are for itself alone, for
# the flags differ from all others.
export RUSTC_BOOTSTRAP=1
target="${CARGO_TARGET_DIR:-$PWD/target}/fuzz"
failed=0
for folder in crates/*/fuzz; do
    [ -e "$folder/Cargo.toml" ] || continue
    for name in $(cargo fuzz list --fuzz-dir "$folder"); do
        new="$kept/$folder/$name"
        mkdir -p "$new" "$folder/corpus/$name"
        echo "fuzzing $folder $name for $seconds s"
        # New inputs go into the first folder only; 4 KiB are more than any token needs.
        cargo fuzz run --fuzz-dir "$folder" --target-dir "$target" -s none "$name" "$new" "$folder/corpus/$name" -- \
            -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
            -verbosity=0 || { echo "kopek: $folder $name: a crash, see $folder/artifacts/$name" >&2; failed=1; }
    done
done
exit $failed
