"""The guide on weights has the conventions of the code."""

import weight_tables


def test_the_tables_of_the_guide_are_those_of_the_code():
    assert weight_tables.PAGE.read_text(encoding="utf-8") == weight_tables.page()
    assert "transposed" in weight_tables.tables()
