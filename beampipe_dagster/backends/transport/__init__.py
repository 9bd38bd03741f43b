"""Commands and files on login nodes over SSH: one connection a target and process, everything bounded."""
