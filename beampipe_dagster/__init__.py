"""The control plane for radio-astronomy survey processing, on Dagster, DALiuGE and a SQL ledger."""
