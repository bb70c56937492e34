"""What is good, and where to look next."""
