"""HTTP, SQL and processes; nothing numeric."""
