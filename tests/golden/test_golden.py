import json

import pytest
from losses import FILE, golden_pack, golden_recipes, losses


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return golden_pack(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", golden_recipes())
def test_twenty_steps_are_what_they_were(name, data, tmp_path):
    expected = json.loads(FILE.read_text())[name]
    # Other processors add in another order: two threads against one changed a loss by at most 6e-7.
    assert losses(golden_recipes()[name], data, tmp_path) == pytest.approx(expected, rel=1e-4)
