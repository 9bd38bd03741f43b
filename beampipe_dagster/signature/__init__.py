"""Did a source's data change: the payload that is signed, and what two payloads differ in."""
