"""A YAML file as a mapping, or a ConfigError that names file, line and remedy.

Decides what is refused as YAML: keys given twice (YAML itself keeps the last and says nothing), other tags than the plain ones,
other encodings than UTF-8. Knows nothing of settings.
"""

from pathlib import Path
from typing import Any

import yaml

from config.problems import ConfigError

_MAX_BYTES = 4 * 2**20  # ten thousand replicas take about 3 MB


def read_mapping(path: Path) -> dict[str, object]:
    """The file's top-level mapping; an empty file is an empty mapping."""
    text = _read_text(path)
    try:
        loader = _Loader(text)
        document = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        raise ConfigError([f"{path}{_place(error)}: {_explained(error)}"]) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([f"{path}: not YAML: {' '.join(str(error).split())}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: nested too deeply"]) from error
    if loader.repeated:
        raise ConfigError([f"{path}:{line}: {what}" for line, what in loader.repeated])
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(
            [f"{path}: a {type(document).__name__}, not a mapping; begin with sections such as `replicas:`"]
        )
    return document


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}; name a readable file with --config"]) from error
    if len(data) > _MAX_BYTES:
        raise ConfigError([f"{path}: larger than {_MAX_BYTES} bytes; is this the right file?"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8; save the file as UTF-8"]) from error


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"


def _explained(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "not YAML"
    if "'\\t'" in problem:
        return "a tab; YAML indents with spaces"
    if "could not determine a constructor" in problem:
        return f"{problem}; write plain values, without tags"
    if "expected a single document" in (error.context or ""):
        return "a second document begins here; keep one"
    return f"not YAML: {problem}"


class _Loader(yaml.SafeLoader):
    """Safe YAML that notes keys given twice: (line, what). Checked on nodes, before `<<` merges mappings."""

    def __init__(self, text: str) -> None:
        self.repeated: list[tuple[int, str]] = []
        super().__init__(text)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                self.repeated.append(
                    (line, f"`{key.value}` is given twice, first in line {lines[key.value]}; keep one")
                )
            lines.setdefault(key.value, line)
        return node
