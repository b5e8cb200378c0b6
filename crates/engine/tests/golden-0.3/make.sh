#!/bin/sh
# Makes the golden replicas again, with Litestream 0.3.13 from the Go module proxy. Needs go, gcc,
# python3 and a network.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
GOPATH="$work/go" GOBIN="$work" GOFLAGS=-mod=mod \
    go install github.com/benbjohnson/litestream/cmd/litestream@v0.3.13
for page_size in 1024 4096; do
    rm -rf "${here:?}/$page_size"
    python3 "$here/make.py" "$work/litestream" "$page_size" "$here/$page_size"
done
