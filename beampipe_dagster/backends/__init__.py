"""What executes a physical graph: the port, and the adapters to the services behind it.

Belongs here: protocols, their errors and their states. Does not belong here: decisions about an execution.
"""
