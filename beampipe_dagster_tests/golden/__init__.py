"""Replays files of known cases against the product's own functions.

``python -m beampipe_dagster_tests.golden DIR`` replays ``DIR/<area>.json`` for every area that has
a module ``area_<area>.py`` here. Such a module has

* ``FUNCTIONS``: by the case's ``fn``, a function from the case's input to what it expects, and
* optionally ``DEVIATIONS``: rules by which the product's answer differs on purpose.
"""
