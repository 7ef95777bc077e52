#!/usr/bin/env bash
# Runs every test file in a process of its own: the native threads of PyTorch, inference engines,
# DDS and OpenGL have crashed a process that had loaded all of them. Arguments go to pytest.
set -u
cd "$(dirname "$0")/.."
failed=()
for file in test/test_*.py; do
    python -m pytest -q "$@" "$file"
    status=$?
    # 5: pytest found nothing to run, as where a whole file is skipped.
    [[ $status == 0 || $status == 5 ]] || failed+=("$file (status $status)")
done
[[ ${#failed[@]} == 0 ]] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
