import pytest
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import build
from tinlab.models.layers import named_layers


def test_patterns_match_dotted_names_in_order():
    model = build(recipe.Model(width=4), 3)
    assert list(named_layers(model, "fc", field="f")) == ["fc"]
    assert list(named_layers(model, "layer?.0.conv2", field="f")) == [
        f"layer{n}.0.conv2" for n in (1, 2, 3, 4)
    ]
    assert named_layers(model, "layer4.1.conv[12]", field="f") == {
        "layer4.1.conv1": model.layer4[1].conv1,
        "layer4.1.conv2": model.layer4[1].conv2,
    }
    everything = named_layers(model, "*", field="f")
    assert "" not in everything
    assert len(everything) == len(list(model.modules())) - 1
    assert {"layer3", "layer3.0", "layer3.0.bn1"} <= set(named_layers(model, "layer3*", field="f"))


def test_a_pattern_that_matches_nothing_names_the_field_and_the_nearest_layers():
    model = build(recipe.Model(width=4), 3)
    with pytest.raises(TinlabError, match=r"^loss\.penalties\.0\.layers: .* 'conv11'; it has conv1"):
        named_layers(model, "conv11", field="loss.penalties.0.layers")
    with pytest.raises(TinlabError, match=r"'zzz\*'; it has conv1, bn1, act, maxpool, layer1, …$"):
        named_layers(model, "zzz*", field="f")
    with pytest.raises(TinlabError, match="it has no layers"):
        named_layers(nn.Identity(), "fc", field="f")
