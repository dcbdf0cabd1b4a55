"""The image and the compose file of the Wyoming service: what can be seen without a Docker engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

from emoinv_edge.cli import build_parser

FOLDER = Path(__file__).parent.parent / "examples" / "wyoming"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (FOLDER / "compose.yaml").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_is_built_from_the_wheel_and_serves_without_rights() -> None:
    found = instructions()
    assert {name for name, _ in found} <= {
        "FROM", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    last = dict(found)
    assert not last["USER"].startswith(("0", "root"))
    assert last["COPY"].startswith("--from=wheel")
    words = json.loads(last["ENTRYPOINT"])[1:] + json.loads(last["CMD"])
    assert build_parser().parse_args(words).uri == "tcp://0.0.0.0:10350"


def test_every_command_of_the_compose_file_is_understood() -> None:
    service = COMPOSE.partition("\n  emoinv:")[2].partition("\n  microphone:")[0]
    words = re.search(r"command: (\[.*\])", service)
    assert words is not None
    arguments = build_parser().parse_args(["wyoming", *json.loads(words[1])])
    assert arguments.upstream == "tcp://recogniser:10300"
    enrol = re.search(r"--service-ports emoinv (--uri \S+ --enrol ana)", COMPOSE)
    assert enrol is not None
    assert build_parser().parse_args(["wyoming", *enrol[1].split()]).enrol == "ana"


def test_no_port_is_open_to_the_network() -> None:
    ports = re.findall(r'ports: \["([^"]+)"\]', COMPOSE)
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)
