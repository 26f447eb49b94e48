"""A layer that only moves a size has fewer fields in TensorRT-RTX's table, and is read as well."""

from __future__ import annotations

from edgekd.engine.layers import Tensor, parse_dump

# As TensorRT-RTX 1.7.1 printed it for a BERT whose sequence changes.
LOG = (
    "Layers:\n"
    "Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ "
    "{ Name: /bert/Gather_3_output_0, Location: Device, Dimensions: [1], Datatype: Int64, Format: "
    "Format not available due to dynamic shapes }], ParameterType: ShapeH2D, shapeValues0: [-5], "
    "TacticValue: 0x0000000000000000, StreamId: 0, Metadata: \n"
    "Name: __mye10580_0_myl1_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], "
    "TacticName: , StreamId: 0, Metadata: \n"
    "\n"
)


def test_it_is_read() -> None:
    moved, called = parse_dump(LOG)
    assert (moved.type, moved.tactic, moved.constants) == ("ShapeHostToDevice", "", ())
    assert moved.outputs == (Tensor("Int64", (1,)),)
    assert called.type == "shape_call"
