"""The SQL ledger: the truth about sources, metadata, executions and everything that happened to them.

Belongs here: tables, migrations, the law of status transitions, and one store module for each group of tables.
Does not belong here: decisions. What may run, what a signature is and what an observation means is decided by
the packages above; they call the stores inside a transaction of their own.
"""
