"""docker-compose.yml and the Dockerfiles, as far as they can be checked without an engine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from service.db import api_keys
from service.db.session import Database
from service.settings import Settings
from workers.open_store import open_store

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ("service/Dockerfile", "workers/Dockerfile")
SERVICES = {"api", "conductor", "ray-head", "ray-worker", "postgres", "store", "bucket"}
OURS = ("api", "conductor", "ray-head", "ray-worker")
ONE_SHOT = {"bucket"}
SERVICE_KEYS = {
    "build", "command", "configs", "depends_on", "entrypoint", "environment", "healthcheck",
    "image", "ports", "restart", "shm_size", "volumes",
}  # fmt: skip
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?:(:[-?])([^}]*))?\}")


@pytest.fixture(scope="module")
def text() -> str:
    return (ROOT / "docker-compose.yml").read_text()


@pytest.fixture(scope="module")
def compose(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, comments dropped and continued lines joined."""
    lines = [
        line
        for line in (ROOT / dockerfile).read_text().splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, rest in split]


def test_the_services_are_there_and_use_known_keys(compose: dict[str, Any]) -> None:
    known = {"name", "services", "volumes", "configs"}
    assert {key for key in compose if not key.startswith("x-")} <= known
    assert set(compose["services"]) == SERVICES
    for name, service in compose["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert "image" in service, name


def test_every_lasting_service_has_a_health_check_and_comes_back(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name in ONE_SHOT:
            assert service["restart"] == "on-failure"
            continue
        check = service["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL"), name
        assert len(check["test"]) > 1, name
        for key in ("interval", "timeout"):
            assert re.fullmatch(r"\d+(ms|s|m)", check[key]), f"{name}: {key}"
        assert service["restart"] == "unless-stopped", name


def test_waiting_is_for_services_that_can_answer(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] in CONDITIONS, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}"
            if how["condition"] == "service_completed_successfully":
                assert other in ONE_SHOT, f"{name} waits for the end of {other}"


def test_volumes_and_configs_are_declared_and_used(compose: dict[str, Any]) -> None:
    used = {
        mount.partition(":")[0]
        for service in compose["services"].values()
        for mount in service.get("volumes", [])
    }
    assert used == set(compose["volumes"])
    configs = {c["source"] for s in compose["services"].values() for c in s.get("configs", [])}
    assert configs == set(compose["configs"])


def test_builds_name_files_that_exist(compose: dict[str, Any]) -> None:
    for name in OURS:
        build = compose["services"][name]["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file(), name
        declared = {rest.partition("=")[0] for word, rest in instructions(build["dockerfile"])
                    if word == "ARG"}  # fmt: skip
        assert set(build.get("args", {})) <= declared, name


def test_nodes_of_the_ray_cluster_run_one_image(compose: dict[str, Any]) -> None:
    images = {compose["services"][n]["image"] for n in ("conductor", "ray-head", "ray-worker")}
    assert len(images) == 1
    assert compose["services"]["api"]["image"] not in images


def test_our_settings_exist_and_are_accepted(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OURS:
        environment = compose["services"][name]["environment"]
        given = {
            key: VARIABLE.sub("secret", str(value))
            for key, value in environment.items()
            if key.startswith("PARETOPRESS_")
        }
        unknown = {
            key for key in given
            if key.removeprefix("PARETOPRESS_").lower() not in Settings.model_fields
        }  # fmt: skip
        assert not unknown, f"{name}: {sorted(unknown)}"
        for key, value in given.items():
            monkeypatch.setenv(key, value)
    settings = Settings()
    assert settings.database_url.startswith("postgresql+psycopg://paretopress:secret@postgres")
    assert settings.require_api_key


def test_the_store_url_is_understood(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = compose["services"]["conductor"]["environment"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    store: Any = open_store(environment["PARETOPRESS_STORE_URL"])
    assert store.bucket == "paretopress"
    bucket = compose["services"]["bucket"]["command"][0]
    assert f"-name {store.bucket}" in bucket


def test_only_loopback_is_published_and_secrets_have_no_defaults(
    compose: dict[str, Any], text: str
) -> None:
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
            target = int(port.rpartition(":")[2])
            assert service["environment"]["PARETOPRESS_PORT"] == str(target)
    for variable, kind, default in VARIABLE.findall(text):
        if any(word in variable for word in ("PASSWORD", "TOKEN", "KEY")):
            assert kind != ":-", f"{variable} defaults to {default!r}"


def test_every_variable_is_in_the_example(text: str) -> None:
    example = (ROOT / ".env.example").read_text()
    required = {name for name, kind, _ in VARIABLE.findall(text) if kind in ("", ":?")}
    assert required
    missing = {name for name in required if not re.search(rf"^{name}=", example, re.MULTILINE)}
    assert not missing


def test_the_printed_recipe_makes_a_key_that_is_accepted(text: str, tmp_path: Path) -> None:
    found = re.search(r"exec -T api python -m (service\.keys create \w+)$", text, re.MULTILINE)
    assert found is not None
    database = Database(Settings(data_dir=tmp_path).database_url)
    environment = {**os.environ, "PARETOPRESS_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", *found.group(1).split()]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    with database.write() as session:
        key = api_keys.verify(session, ended.stdout.strip())
    database.close()
    assert key is not None
    assert key.scopes == ("admin",)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_dockerfile_is_well_formed(dockerfile: str) -> None:
    words = [word for word, _ in instructions(dockerfile)]
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "CMD"}
    assert set(words) <= known
    assert words[0] == "FROM"
    assert words.index("USER") > max(at for at, word in enumerate(words) if word == "RUN")
    for word, rest in instructions(dockerfile):
        if word == "CMD":
            assert isinstance(yaml.safe_load(rest), list)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_every_copied_source_exists_and_is_in_the_build_context(dockerfile: str) -> None:
    admitted = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }  # fmt: skip
    for word, rest in instructions(dockerfile):
        if word == "COPY":
            *sources, _ = shlex.split(rest)
            for source in sources:
                assert (ROOT / source).exists(), f"{dockerfile} copies {source}"
                assert source in admitted, f".dockerignore leaves out {source}"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_image_holds_every_package_of_the_distribution(dockerfile: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        pattern.rstrip("*")
        for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    copied = {source for word, rest in instructions(dockerfile) if word == "COPY"
              for source in shlex.split(rest)[:-1]}  # fmt: skip
    assert packages <= copied


def test_the_api_image_installs_a_part_of_the_server_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    declared = {
        Requirement(line).name for extra in ("server", "postgres", "s3") for line in extras[extra]
    }
    (install,) = [
        rest for word, rest in instructions("service/Dockerfile")
        if word == "RUN" and "pip install" in rest
    ]  # fmt: skip
    arguments = shlex.split(install)[2:]
    names = {Requirement(a).name for a in arguments if a not in ("-c", "constraints.txt", ".")}
    assert names <= declared
    assert not names & {"torch", "torchvision", "ray"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_python_of_the_image_is_supported(dockerfile: str) -> None:
    base = next(rest for word, rest in instructions(dockerfile) if word == "FROM")
    found = re.fullmatch(r"python:3\.(\d+)-slim", base)
    assert found is not None
    assert 11 <= int(found.group(1)) < 14
