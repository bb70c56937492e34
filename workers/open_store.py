"""An artifact store from its URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from workers.store import ArtifactStore, FolderStore


def open_store(url: str) -> ArtifactStore:
    """Return the store that a URL names; the same URL names the same store in every process.

    Args:
        url: `file:///absolute/folder`, or `s3://bucket/prefix` with the optional query
            `?endpoint_url=https://...&region=...` for stores other than Amazon's.

    Raises:
        ValueError: The URL is neither.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FolderStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from workers.s3_store import S3Store  # boto3 is an optional dependency.

        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        unknown = sorted(set(query) - {"endpoint_url", "region"})
        if unknown:
            raise ValueError(f"Store URL {url!r} has unknown options {unknown}")
        return S3Store(
            parts.netloc,
            unquote(parts.path),
            endpoint_url=query.get("endpoint_url"),
            region=query.get("region"),
        )
    raise ValueError(f"Store URL is {url!r}; file:///folder and s3://bucket/prefix are known")
