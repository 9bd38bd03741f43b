#!/usr/bin/env bash
# Upgrade both environments to the newest versions that pyproject.toml and requirements/daliuge.in allow, and
# write what they then hold to the locks.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[dev]'
.venv/bin/python -m pip check
.venv-daliuge/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -r requirements/daliuge.in
.venv-daliuge/bin/python -m pip check
.venv/bin/python scripts/write_locks.py
# Pythons other than this one may need more; the stamps make the next call of make look again.
rm -f .venv/.stamp-* .venv-daliuge/.stamp-*
