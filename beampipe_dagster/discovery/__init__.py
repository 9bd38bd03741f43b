"""What exists: archives queried, and their rows made into metadata records."""
