"""Alembic's scripts: the ledger's schema, one step after the other."""
