"""What to run: manifest, graph, admission, and the steps from an admitted execution to a submitted session.

Belongs here: everything that decides about an execution. Does not belong here: how a backend is spoken to
(:mod:`beampipe_dagster.backends`), nor how a running session is watched (:mod:`beampipe_dagster.poll`).
"""
