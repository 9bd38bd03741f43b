"""``python -m beampipe_dagster.sandbox.archive``."""

import sys

from beampipe_dagster.sandbox.archive.server import main

sys.exit(main())
