"""The sizes that keep the code readable: whatever outgrows them wants a room of its own."""

from __future__ import annotations

from support.repository import program


def test_no_file_no_class_and_no_round_loop_is_too_long() -> None:
    structure = program("structure")
    counts = structure.counted(structure.SOURCE)
    assert len(counts.files) > 300
    assert [unit for unit in counts.files if unit.lines > 400] == []
    assert [unit for unit in counts.classes if unit.lines > 250] == []
    (loop,) = [unit.lines for unit in counts.functions if unit.name.endswith(" run_rounds")]
    assert loop < 60
    assert not {(one, other) for one, other in counts.arrows if (other, one) in counts.arrows}
