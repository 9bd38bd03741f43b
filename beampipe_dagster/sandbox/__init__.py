"""A whole beampipe on one machine: archive, DALiuGE, supervisor, demo survey.

Belongs here: what `beampipe up` and `beampipe demo` start and watch. Nothing of the platform imports it.
"""
