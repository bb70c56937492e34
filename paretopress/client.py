"""The client of a ParetoPress server."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from paretopress.errors import ClientError
from paretopress.jobs import Job
from paretopress.problems import ApiProblem
from paretopress.types import DatasetInfo, JobInfo, ModelInfo
from paretopress.wire import API, Part, Parts, Wire

DEFAULT_URL = "http://127.0.0.1:8080"
SCAN_TIMEOUT_S = 600.0
# A scan takes from some tenths of a second to a minute: ask often at first, then seldom.
SCAN_POLLS_S = (0.1, 0.2, 0.4, 0.8, 1.6)

Scanned = TypeVar("Scanned", ModelInfo, DatasetInfo)


class Client:
    """Registers models and datasets, submits jobs, hands out `Job` handles.

    Every creating request carries an `Idempotency-Key`, so that a broken connection never
    leads to two models or two jobs.

    Args:
        url: Root of the server; by default `PARETOPRESS_URL`, else `http://127.0.0.1:8080`.
        api_key: By default `PARETOPRESS_API_KEY`; None where the server asks for none.
        timeout_s: Longest silence within one request.
        transport: Replaces the network, for tests.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._wire = Wire(
            url or os.environ.get("PARETOPRESS_URL") or DEFAULT_URL,
            api_key=api_key or os.environ.get("PARETOPRESS_API_KEY"),
            timeout_s=timeout_s,
            transport=transport,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    @property
    def url(self) -> str:
        """Root of the server."""
        return self._wire.url

    @property
    def dashboard_url(self) -> str:
        """Address of the server's dashboard, for a browser."""
        return f"{self.url}/dashboard/"

    def close(self) -> None:
        """Close all connections."""
        self._wire.close()

    def get(self, path: str) -> Any:
        """Return the JSON data of any resource, for example `/devices`.

        Args:
            path: Below `/api/v1`, with its leading slash.
        """
        return self._wire.request("GET", API + path).json()

    def post(self, path: str, json: Mapping[str, Any] | None = None) -> Any:
        """Send an action that may be repeated, and return its JSON answer.

        Args:
            path: Below `/api/v1`, for example `/devices/agents/kitchen:drain`.
            json: Body.
        """
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return self._wire.request("POST", API + path, json=json, headers=headers).json()

    def register_model(
        self,
        *,
        name: str,
        architecture: str | Mapping[str, Any],
        input_shape: Sequence[int] | None = None,
        weights: Path | str | bytes | None = None,
        options: Mapping[str, Any] | None = None,
        format: str | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        task: str = "classification",
        wait: bool = True,
    ) -> ModelInfo:
        """Register a trained network.

        Args:
            name: Your name for it.
            architecture: A name the server knows (`cifar_resnet56`, `resnet18`, ...), or
                `{"python": "my_package.models:build"}` for your own code (`serve --code`), or
                `onnx` for an ONNX file, which holds its network itself.
            input_shape: C, H, W of one input; may be left out where an ONNX file says it.
            weights: File or content; None where your own builder loads them.
            options: Keyword arguments of the architecture.
            format: `safetensors` (default), `state_dict`, `python` when there are no weights, or
                `onnx` (default for that architecture).
            preprocessing: `layout`, `scale`, `mean`, `std`: from stored pixels to inputs.
            num_classes: Width of the output; the server finds it out when absent.
            task: Only `classification` today.
            wait: Until the server has scanned it.

        Raises:
            ApiProblem: The request or, after the scan, the model was refused.
        """
        if isinstance(architecture, str):
            built: dict[str, Any] = {"name": architecture}
        else:
            built = dict(architecture)
        if options is not None:
            built["options"] = dict(options)
        spec: dict[str, Any] = {
            "name": name,
            "architecture": built,
            "format": format or _usual_format(built, weights),
            "task": task,
        }
        if input_shape is not None:
            spec["input_shape"] = list(input_shape)
        if preprocessing is not None:
            spec["preprocessing"] = dict(preprocessing)
        if num_classes is not None:
            spec["num_classes"] = num_classes
        created = ModelInfo.model_validate(self._upload("/models", spec, "weights", weights))
        return self._scanned("models", created) if wait else created

    def register_dataset(
        self,
        *,
        name: str,
        format: str,
        data: Path | str | bytes | None = None,
        splits: Mapping[str, Any] | None = None,
        source: str | None = None,
        num_classes: int | None = None,
        wait: bool = True,
    ) -> DatasetInfo:
        """Register the images on which plans are recovered and compared.

        Args:
            name: Your name for it.
            format: `npz`, `folders` (zip or tar of class folders), `parquet` or `builtin`.
            data: File or content, for the first three.
            splits: Shares of `train`, `calibration`, `search`, `test`, and `seed`.
            source: Built-in name, for example `digits`.
            num_classes: Labels must be below it; the server takes what they say when absent.
            wait: Until the server has checked it.

        Raises:
            ApiProblem: The request or, after the scan, the dataset was refused.
        """
        spec: dict[str, Any] = {"name": name, "format": format}
        if source is not None:
            spec["source"] = source
        if num_classes is not None:
            spec["num_classes"] = num_classes
        if splits is not None:
            spec["splits"] = dict(splits)
        created = DatasetInfo.model_validate(self._upload("/datasets", spec, "data", data))
        return self._scanned("datasets", created) if wait else created

    def dry_run(self, job: Mapping[str, Any] | None = None, /, **fields: Any) -> dict[str, Any]:
        """Return what a job would search, without starting it.

        Args:
            job: Body of `POST /jobs`.
            fields: Members of the body, beside or instead of `job`.

        Returns:
            Resolved space, baseline, reachable region and forecast, as the server words them.

        Raises:
            ApiProblem: The job is not valid, or no plan can meet a constraint.
        """
        body = {**(job or {}), **fields}
        answer = self._wire.request(
            "POST",
            f"{API}/jobs",
            json=body,
            params={"dry_run": "true"},
            headers={"Idempotency-Key": uuid.uuid4().hex},
        )
        result: dict[str, Any] = answer.json()
        return result

    def submit(
        self,
        job: Mapping[str, Any] | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Job:
        """Start a job and return its handle.

        Args:
            job: Body of `POST /jobs`.
            idempotency_key: Submitting again with the same key and body returns the first job;
                by default a fresh key, which makes this call alone safe to repeat.
            fields: Members of the body, beside or instead of `job`.

        Raises:
            ApiProblem: The job is not valid.
        """
        body = {**(job or {}), **fields}
        key = idempotency_key or uuid.uuid4().hex
        answer = self._wire.request(
            "POST", f"{API}/jobs", json=body, headers={"Idempotency-Key": key}
        )
        return self.job(JobInfo.model_validate(answer.json()).id)

    def job(self, job_id: str) -> Job:
        """Return the handle of a job; the server is asked when the handle is used."""
        return Job(self._wire, job_id)

    def jobs(self) -> Iterator[JobInfo]:
        """Yield all jobs, in the server's order, page by page."""
        params: dict[str, str | int] = {"limit": 100}
        while True:
            page = self._wire.request("GET", f"{API}/jobs", params=params).json()
            for item in page["data"]:
                yield JobInfo.model_validate(item)
            if not page.get("has_more"):
                return
            params["cursor"] = page["next_cursor"]

    def _upload(
        self, path: str, spec: Mapping[str, Any], part: str, content: Path | str | bytes | None
    ) -> Any:
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        parts = _parts(spec, part, content)
        return self._wire.request("POST", API + path, parts=parts, headers=headers).json()

    def _scanned(self, kind: str, item: Scanned) -> Scanned:
        deadline = time.monotonic() + SCAN_TIMEOUT_S
        polls = 0
        while item.state == "SCANNING":
            if time.monotonic() > deadline:
                raise ClientError(f"{item.id} is still SCANNING after {SCAN_TIMEOUT_S:.0f} s")
            time.sleep(SCAN_POLLS_S[min(polls, len(SCAN_POLLS_S) - 1)])
            polls += 1
            item = type(item).model_validate(self.get(f"/{kind}/{item.id}"))
        if item.state == "REJECTED":
            document = {"title": f"{item.name or item.id} was rejected", **(item.problem or {})}
            raise ApiProblem(int(document.get("status", 422)), document)
        return item


def _usual_format(architecture: Mapping[str, Any], weights: object) -> str:
    if architecture.get("name") == "onnx":
        return "onnx"
    return "python" if weights is None else "safetensors"


def _parts(spec: Mapping[str, Any], name: str, content: Path | str | bytes | None) -> Parts:
    """Return what opens the parts of a registration, afresh for each attempt."""

    def opened(stack: contextlib.ExitStack) -> Mapping[str, Part]:
        parts: dict[str, Part] = {"spec": (None, json.dumps(spec), "application/json")}
        if isinstance(content, bytes):
            parts[name] = (name, io.BytesIO(content), "application/octet-stream")
        elif content is not None:
            path = Path(content)
            file = stack.enter_context(path.open("rb"))
            parts[name] = (path.name, file, "application/octet-stream")
        return parts

    return opened
