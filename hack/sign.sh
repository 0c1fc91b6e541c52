#!/bin/bash
# sign.sh OUT REPOSITORY: signs OUT/release/SHA256SUMS, which vouches for the other files, and
# the pushed image by its digest. It uses cosign without a key: the certificate says which
# workflow signed, and is logged in public.
set -euo pipefail

out=$(cd "$1" && pwd)
type -P cosign >/dev/null || { echo "sign.sh: no cosign in PATH" >&2; exit 1; }
cosign sign-blob --yes --bundle "$out/release/SHA256SUMS.sigstore.json" "$out/release/SHA256SUMS"
cosign sign --yes --recursive "$2@$(cat "$out/image/digest")"
