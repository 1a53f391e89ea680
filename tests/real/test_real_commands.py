"""The commands on SmolLM2, as a person types them."""

import pytest

from jmi_models.gguf import places
from tests.cli.command_line import jmi

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def installed() -> None:
    if "smollm2" not in places.installed():
        pytest.skip(f"smollm2 is not installed: {places.HOW_TO_INSTALL['smollm2']}")


def said(*arguments: str) -> str:
    done = jmi(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_inspect_says_what_is_stored_and_how():
    shown = said("inspect", "smollm2")
    assert shown.startswith("smollm2 can be loaded, read as llama")
    for words in ("Q4_1 210, Q8_0 1, F32 61", "9 of 64, 3 for keys and values", "134,515,008"):
        assert words in shown


def test_knockout_of_the_country_takes_the_answer_away():
    shown = said("knockout", "--model", "smollm2")
    assert "target ' Paris'" in shown
    assert "probability 0.7725 -> 0.002105" in shown


def test_patch_lists_the_head_that_moves_the_name_first():
    shown = said("patch", "--model", "smollm2", "--top", "5")
    rows = [line.split("│") for line in shown.splitlines() if line.startswith("│")]
    assert [(int(row[1]), int(row[2])) for row in rows] == [(23, 3), (20, 0), (29, 1), (29, 0), (24, 4)]
    assert rows[0][4].strip() == "+69.0%"


def test_attribute_finds_it_too():
    shown = said("attribute", "--model", "smollm2", "--top", "3")
    rows = [line.split("│") for line in shown.splitlines() if line.startswith("│")]
    assert [(int(row[1]), int(row[2])) for row in rows] == [(23, 3), (29, 1), (29, 0)]
