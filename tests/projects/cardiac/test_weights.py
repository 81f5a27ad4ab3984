"""The weights of a stage name their network."""

from pathlib import Path

import pytest

from mltrain.errors import DataError
from projects.cardiac import motion, weights
from projects.cardiac.deformation import DeformationNet, RefinedFlowNet


@pytest.mark.parametrize("net", [RefinedFlowNet(), DeformationNet("motion")])
def test_a_motion_network_is_read_back_as_what_it_was(net: DeformationNet, tmp_path: Path) -> None:
    weights.save(net, motion.Config(), tmp_path)
    again = weights.motion_net(tmp_path)
    assert type(again) is type(net)
    assert again.state_dict().keys() == net.state_dict().keys()


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    weights.save(RefinedFlowNet(), motion.Config(), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"weights in .* are damaged"):
        weights.motion_net(tmp_path)
