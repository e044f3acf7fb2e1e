"""What is refused as a file, and how it is said."""

from pathlib import Path

import pytest

from config.problems import ConfigError
from config.yaml_file import read_mapping


def read(tmp_path: Path, data: bytes | str) -> dict[str, object]:
    path = tmp_path / "p.yaml"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_mapping(path)


def refused(tmp_path: Path, data: bytes | str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, data)
    return "\n".join(caught.value.problems).replace(f"{tmp_path}/", "")


def test_plain_yaml_is_read(tmp_path: Path):
    """Mappings, lists, anchors and merge keys work; a byte-order mark is ignored; an empty file is an empty mapping."""
    text = "base: &b {x: 1, y: 2}\nmore: &m {<<: *b, y: 3}\nlast: {<<: *m, z: [1, two]}\n"
    expected = {"base": {"x": 1, "y": 2}, "more": {"x": 1, "y": 3}, "last": {"x": 1, "y": 3, "z": [1, "two"]}}
    assert read(tmp_path, b"\xef\xbb\xbf" + text.encode()) == expected
    assert read(tmp_path, "# nothing\n") == {}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("server:\n  port: 1\n  host: a\n  port: 2\n", "p.yaml:4: `port` is given twice, first in line 2; keep one"),
        (
            'a: 1\na: 2\n"a": 3\n',
            "p.yaml:2: `a` is given twice, first in line 1; keep one\np.yaml:3: `a` is given twice, first in line 1; keep one",
        ),
        ("server:\n\tport: 1\n", "p.yaml:2:1: a tab; YAML indents with spaces"),
        ("- 1\n", "p.yaml: a list, not a mapping; begin with sections such as `replicas:`"),
        ("word\n", "p.yaml: a str, not a mapping; begin with sections such as `replicas:`"),
        (b"a: 1\nb: \xff\xfe\n", "p.yaml:2: not UTF-8; save the file as UTF-8"),
        ("a: 1\n---\nb: 2\n", "p.yaml:2:1: a second document begins here; keep one"),
        ("a: [1, 2\n", "p.yaml:2:1: not YAML: expected ',' or ']', but got '<stream end>'"),
        (
            "a: !!python/object:os.system {}\n",
            "p.yaml:1:4: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'; write plain values, without tags",
        ),
        ("a: 2024-99-99\n", "p.yaml: not YAML: month must be in 1..12"),
        ("[" * 5000, "p.yaml: nested too deeply"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, data: bytes | str, said: str):
    """File, line, what is wrong, what to do."""
    assert refused(tmp_path, data) == said


def test_control_characters_are_refused(tmp_path: Path):
    """YAML has no place for them."""
    assert refused(tmp_path, "a: \x00\n").startswith("p.yaml: not YAML: ")


def test_unreadable_files_are_explained(tmp_path: Path):
    """A missing file and a directory say so and name the flag."""
    for path, why in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            read_mapping(path)
        assert caught.value.problems == [f"{path}: {why}; name a readable file with --config"]


def test_a_huge_file_is_refused_unread(tmp_path: Path):
    """A log named by mistake is not parsed."""
    assert refused(tmp_path, b"#" * (4 * 2**20 + 1)) == "p.yaml: larger than 4194304 bytes; is this the right file?"


def test_recursive_aliases_end(tmp_path: Path):
    """A list that holds itself is read, and left to the schema to refuse."""
    items = read(tmp_path, "replicas: &r [*r]\n")["replicas"]
    assert isinstance(items, list)
    assert items[0] is items
