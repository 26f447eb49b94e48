"""Give every node the path of the module it was made from, and drop what the exporter noted.

Rule: a node with torch.export's note of its scopes is called ``/<module path>/<operator>`` (a
number makes a second one of a module different), as the older exporter calls it. The notes then
go: they hold paths of the machine that exported. It must not fire on a node without such a note.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"


class NameNodesPass(ir.passes.InPlacePass):
    """Renames nodes that torch.export made; see the module's text."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename in place."""
        taken: Counter[str] = Counter()
        modified = False
        for node in model.graph:
            name = _name(node)
            if name is not None:
                node.name = f"{name}_{taken[name]}" if taken[name] else name
                taken[name] += 1
                modified = True
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in [*model.graph.inputs, *model.graph.initializers.values()]:
            value.metadata_props.clear()
        model.metadata_props.clear()
        model.graph.metadata_props.clear()
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """No two nodes have one name, and no note is left."""
        names = Counter(node.name for node in model.graph if node.name)
        twice = [name for name, count in names.items() if count > 1]
        if twice or any(node.metadata_props for node in model.graph):
            raise ir.passes.PostconditionError(f"nodes with one name: {twice}, or notes are left")


def _name(node: ir.Node) -> str | None:
    note = node.metadata_props.get(_SCOPES)
    if note is None:
        return None
    scopes = [scope for scope in ast.literal_eval(note)[:-1] if scope]
    module = scopes[-1].replace(".", "/") if scopes else ""
    return f"/{module}/{node.op_type}" if module else f"/{node.op_type}"
