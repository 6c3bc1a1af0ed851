"""JSON by the C half of the standard library's module: the same texts, without `re`."""

import json as standard
from pathlib import Path

import programs
import pytest

import mpworker
from mpworker.ipc import json

VALUES = [
    *(None, True, 0, -(1 << 70), 1.5, 1e300, float("inf"), "", 'a "quoted"\nline', "\u00e9\U0001f600\x00", [], {}),
    {"a": [1, 2.5, {"b": None}], "c": {"d": [[], ["x"]]}},
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_it_writes_and_reads_what_the_standard_library_does(value: object) -> None:
    text = json.dumps(value)
    assert text == standard.dumps(value, separators=(",", ":"))
    assert json.loads(text) == json.loads(text.encode()) == json.loads(standard.dumps(value)) == value


@pytest.mark.parametrize("data", [b"", b"{", b"[1,", b"x", b'{"a":}', b"1 2", b"\xff", b'{"a" 1}', b'"\n"'])
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of which kind depends on what is wrong
        json.loads(data)


def test_what_is_no_json_is_a_value_error_where_the_other_half_is_not_loaded(tmp_path: Path) -> None:
    source = f"""
        import sys
        sys.path.append({str(Path(mpworker.__file__).parents[1])!r})
        from mpworker.ipc import json
        assert "json" not in sys.modules and "re" not in sys.modules
        for text in ("", "[1,", '"\\n"'):
            try:
                json.loads(text)
            except ValueError:
                print("refused")
    """
    assert programs.run_source(source, tmp_path, "-I", "-S").stdout.split() == ["refused"] * 3


def test_what_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="Object of type set is not JSON serializable"):
        json.dumps({"a": set()})
    itself: list[object] = []
    itself.append(itself)
    with pytest.raises(ValueError, match="Circular reference"):
        json.dumps(itself)
