#!/bin/sh
# Builds the fuzz targets and runs them: ./run.sh [TARGET [SECONDS | FILE]]. See README.md.
#
# This is what cargo-fuzz does on a nightly toolchain, less the address sanitizer, which stable lacks.
set -eu
cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares"
# An explicit target keeps these flags away from build scripts.
CARGO_TARGET_DIR=$PWD/target RUSTFLAGS="--cfg fuzzing $(echo $coverage)" \
    cargo build --locked --release --target "$host"

seed() {
    mkdir -p "corpus/$1" "artifacts/$1"
    case $1 in
    ltx_*) find ../crates/ltx/tests/golden -name '*.ltx' ;;
    sqlite_*) find ../crates/sqlite-format/tests/golden -name '*.wal' -o -name '*.shm' -o -name '*.db-head' ;;
    esac | while read -r file; do
        cp "$file" "corpus/$1/seed-$(echo "${file#../crates/*/tests/golden/}" | tr / -)"
    done
}

run() {
    seed "$1"
    "target/$host/release/$1" -artifact_prefix="artifacts/$1/" -max_total_time="$2" \
        -max_len=140000 -rss_limit_mb=512 -malloc_limit_mb=64 -print_final_stats=1 "corpus/$1"
}

if [ $# -eq 0 ]; then
    for target in targets/*.rs; do
        run "$(basename "$target" .rs)" 30
    done
elif [ -f "${2:-}" ]; then
    "target/$host/release/$1" "$2"
else
    run "$1" "${2:-30}"
fi
