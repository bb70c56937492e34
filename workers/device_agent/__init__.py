"""The process on a board: pulls timing orders over HTTP; no torch, no Ray, no SQL."""
