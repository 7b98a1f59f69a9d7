"""The table of `bench.filtered_lrelu`."""

from dataclasses import replace

from bench import filtered_lrelu
from bench.forms import FORMS


def test_a_row_compares_the_operation_with_its_parts_and_plain_pytorch(monkeypatch, capsys):
    small = {"cpu": ((1, 16, 20, 20),)}
    monkeypatch.setattr(filtered_lrelu, "FORMS", [replace(form, shapes=small) for form in FORMS])
    monkeypatch.setattr(filtered_lrelu, "DTYPES", ("fp32",))
    monkeypatch.setattr(filtered_lrelu, "SECONDS", 0.01)
    filtered_lrelu.main(["alias_free"])
    *_, row = capsys.readouterr().out.splitlines()
    label, size, dtype, *figures = [cell.strip() for cell in row.strip("|").split("|")]
    assert (label, size, dtype) == ("`filtered_lrelu`: same size", "1x16x20x20", "fp32")
    _, time_of_parts, time_of_plain, _, memory_of_parts, memory_of_plain = (float(each.strip("x ")) for each in figures)
    assert time_of_parts > 0 and time_of_plain > 0
    assert memory_of_parts > 0 and memory_of_plain > 0  # how much is for the table: threads of other tests allocate too
