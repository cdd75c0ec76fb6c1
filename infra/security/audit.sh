#!/usr/bin/env bash
# Looks for known faults: in our code, for secrets in files, in the packages of the image. `make audit`
# runs it; the three programs come and go with uvx, which is the first argument.
set -euo pipefail
uvx=${1:-uvx}

echo "bandit: our code"
# What it leaves out, and why, is in pyproject.toml and beside each `nosec`.
"$uvx" --quiet --from "bandit[toml]==1.9.4" \
  bandit --quiet -c pyproject.toml -r datagen training infra pipelines

echo "detect-secrets: all files but tests, whose passwords are made up in order to be found"
# Numbers in hex are digests; `secretName` of Kubernetes is a name.
git ls-files -z | grep -zvE '^tests/|\.lock$' | xargs -0 \
  "$uvx" --quiet --from "detect-secrets==1.5.0" \
  detect-secrets-hook --disable-plugin HexHighEntropyString --exclude-lines secretName

echo "pip-audit: the packages of the image"
for lock in infra/images/*.lock; do
  found=$("$uvx" --quiet "pip-audit==2.10.1" --no-deps --disable-pip -r "$lock" 2>&1) && clean=1 || clean=
  if grep -qE '^(numpy|torch) .*could not be audited|ConnectionError|ServiceError' <<<"$found"; then
    echo "  NOT LOOKED UP: the source of vulnerabilities cannot be reached from here ($lock)"
  else
    echo "$found"
    [ "$clean" ]
  fi
done
