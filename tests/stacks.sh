#!/usr/bin/env bash
# The tests on both supported stacks: the newest releases, and the last ones S3PRL 0.4.18 imports on unaided.
# Usage: tests/stacks.sh [PYTEST ARGUMENTS]; ENVIRONMENTS=DIR keeps the two virtual environments there.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${ENVIRONMENTS:-$(mktemp -d)}
[ -n "${ENVIRONMENTS:-}" ] || trap 'rm -rf "$folder"' EXIT

on_stack() {
    local name=$1
    shift
    [ -d "$folder/$name" ] || python3 -m venv "$folder/$name"
    "$folder/$name/bin/pip" install --quiet -e ".[test]" "$@"
    echo "== $name"
    "$folder/$name/bin/pip" list 2>/dev/null | grep -iE '^(torch|torchaudio|huggingface.hub|s3prl) '
    "$folder/$name/bin/python" -m pytest "${pytest_arguments[@]}"
}

pytest_arguments=("$@")
on_stack newest
on_stack older "torch==2.8.0" "torchaudio==2.8.0" "huggingface_hub<1"
