import pytest

from projects.groups import group_of


@pytest.mark.parametrize(
    ("name", "expression", "group"),
    [
        ("p1_rest", None, "p1_rest"),
        ("p1_rest", r"^p\d", "p1"),
        ("p1_rest", r"^(p\d)_", "p1"),
        ("x2", r"^(p\d)_|^x\d", "x2"),
        ("y", r"^(p\d)_|^x\d", None),
    ],
    ids=["no expression", "match", "group in parentheses", "parentheses without a part", "no match"],
)
def test_a_name_belongs_to_the_group_that_its_match_names(name: str, expression: str | None, group: str | None) -> None:
    assert group_of(name, expression) == group
