"""Tables, repositories and the SQL ledger: the only package that knows SQL."""
