"""Benchmarks: what things cost, each beside a baseline that was measured in the same run.

``python -m beampipe_dagster_tests.bench [NAME ...] [--json]``. One module ``bench_<name>`` for each; its
``run()`` gives the figures. A figure alone says more about the machine than about the product, so that each
goal is a ratio, or has its baseline next to it.
"""
