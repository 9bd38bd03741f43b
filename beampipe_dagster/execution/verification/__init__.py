"""Whether an execution's products are where its publisher says they are.

A survey may ask that an execution is done only when its products are proven. Then a finished session is not enough:
either the publisher reports what it has published, or a check reads the published products again.
"""
