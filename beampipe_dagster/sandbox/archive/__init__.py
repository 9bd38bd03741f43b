"""A TAP 1.1 archive of our own: CASDA-like and VizieR-like tables, faults and deposits.

It holds what a demo and a test need of an archive: the protocol, real sources, and every way to fail.
Nothing of production imports it.
"""
