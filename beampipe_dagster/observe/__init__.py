"""What operators and machines see from outside: metrics now; logs, alerts and health beside them.

Belongs here: reading the ledger for people and for Prometheus. Does not belong here: changing anything.
"""
