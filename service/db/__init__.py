"""Tables, repositories and the SQL ledger: the only package that knows SQL."""

# Every table is known to the metadata as soon as anything of the database is.
from service.db import device_tables as device_tables
