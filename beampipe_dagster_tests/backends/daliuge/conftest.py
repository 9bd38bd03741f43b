from __future__ import annotations

from collections.abc import Iterator

import pytest

from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.clock import ManualClock
from beampipe_dagster_tests.backends.daliuge.rest_support import backend_for
from beampipe_dagster_tests.support.fake_daliuge import FakeDaliuge


@pytest.fixture
def fake() -> Iterator[FakeDaliuge]:
    with FakeDaliuge() as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def backend(fake: FakeDaliuge, clock: ManualClock) -> RestBackend:
    return backend_for(fake, clock)
