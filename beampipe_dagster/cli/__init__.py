"""The `beampipe` command: one module a group of commands, each over the services of the assembly."""
