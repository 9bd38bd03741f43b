"""Asking an archive to bring files from its tapes to its disks, and finding out where they are then.

Belongs here: the documents of DataLink and UWS, the client of CASDA's data staging, which files an execution
needs, and the jobs of one execution in the ledger. Does not belong here: what an execution is
(:mod:`beampipe_dagster.execution`). A signed URL is a secret: none is ever written into the ledger, a log, an
event or an error.
"""
