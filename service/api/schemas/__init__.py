"""What travels over HTTP, as pydantic types; the domain's own types stay free of pydantic."""
