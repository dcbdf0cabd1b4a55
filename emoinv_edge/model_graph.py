"""What a model file computes: the fingerprint of its graph, and graphs that are refused before anything runs them.

An ONNX file is a protocol-buffer message. This module reads as much of it as it needs, with no library for it: the
fields of the message one after the other, and below the graph its nodes and tensors.

The fingerprint is a SHA-256 of everything in the file that makes the embedding: the graph, the weights, the operator
sets, and the spec of the front end. Metadata (calibration, golden test, provenance) are not in it, so that a file with
newly calibrated scores keeps it, and no metadata can claim another's.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator

from .errors import ModelFormatError
from .spec import EncoderSpec

__all__ = ["check_graph", "fingerprint_of"]

# Of ModelProto, what does not compute: producer_name, producer_version, domain, model_version, doc_string and
# metadata_props. Whatever a later version of ONNX adds counts.
SILENT_FIELDS = frozenset({2, 3, 4, 5, 6, 14})
GRAPH, TRAINING_INFO, FUNCTIONS = 7, 20, 25
MAX_FIELDS = 500_000  # of one file: base has some 10,000
MAX_NODES = 10_000

# Operators whose output is of the size of their inputs, or of a convolution, a product or a reduction of them. Loops,
# branches, and what makes tensors of a size that an input names (Expand, Range, Tile, ConstantOfShape) are not here.
_OPERATORS = """
Abs Add And AveragePool BatchNormalization BiasGelu Cast Ceil Clip Concat Constant Conv ConvInteger CumSum
DequantizeLinear Div DynamicQuantizeLinear Elu Equal Erf Exp FastGelu Flatten Floor FusedConv FusedMatMul Gather
Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish Identity
InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul MatMulInteger Max
MaxPool Mean Min Mish Mul Neg Not Or PRelu Pow QLinearConv QLinearMatMul QuantizeLinear Reciprocal ReduceL1
ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
Reshape Round Selu Shape Sigmoid Sign Slice Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum Tanh Transpose
Unsqueeze Where Xor
"""
OPERATORS = frozenset(_OPERATORS.split())
# What may be computed from weights alone, when the file is opened: nothing that is larger than they are.
FROM_WEIGHTS = frozenset({"Cast", "Constant", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape"})
FROM_WEIGHTS |= {"Shape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
DOMAINS = frozenset({b"", b"ai.onnx", b"com.microsoft"})

_MALFORMED = "it is no ONNX file, or a damaged one: copy it again"


def fingerprint_of(content: bytes, spec: EncoderSpec) -> str:
    """The fingerprint of a model in hexadecimal: SHA-256 of what computes the embedding.

    Parameters
    ----------
    content : bytes
        An ONNX file.
    spec : EncoderSpec
        Of its front end; the name in it does not count.

    Raises
    ------
    ModelFormatError
        If the bytes are no protocol-buffer message. The message does not name the file.
    """
    kept = [
        (number, kind, content[start:end])
        for number, kind, start, end in _Reader(content).fields(0, len(content))
        if number not in SILENT_FIELDS
    ]
    total = hashlib.sha256(b"emoinv model 1\0")
    total.update(_without_name(spec).encode())
    for number, kind, value in sorted(kept, key=lambda field: field[0]):  # stable: writers differ in the order
        total.update(struct.pack("<QBQ", number, kind, len(value)))
        total.update(value)
    return total.hexdigest()


def check_graph(content: bytes) -> None:
    """Refuse a graph that could take for ever, grow without bound, or take weights from other files.

    Raises
    ------
    ModelFormatError
        With what is refused. The message does not name the file.
    """
    reader = _Reader(content)
    graphs = 0
    for number, _, start, end in reader.fields(0, len(content)):
        if number == GRAPH:
            graphs += 1
            if graphs > 1:  # whoever reads the file joins them, and what each may not hold could be in both
                raise _refused("its graph in several pieces")
            _check_graph(reader, start, end)
        elif number in (TRAINING_INFO, FUNCTIONS):
            raise _refused("functions of its own" if number == FUNCTIONS else "training information")


def _without_name(spec: EncoderSpec) -> str:
    values = json.loads(spec.to_json())
    del values["name"]
    return json.dumps(values, sort_keys=True)


def _refused(what: str) -> ModelFormatError:
    return ModelFormatError(
        f"expected a graph of plain operators with its weights inside, got one with {what}; "
        "export the model with `python -m export`"
    )


def _check_graph(reader: _Reader, start: int, end: int) -> None:
    nodes = []
    weights: set[bytes] = set()
    for number, _, first, last in reader.fields(start, end):
        if number == 1:
            nodes.append((first, last))
            if len(nodes) > MAX_NODES:
                raise _refused(f"more than {MAX_NODES} nodes")
        elif number == 5:
            weights.add(_check_tensor(reader, first, last))
        elif number == 15:
            raise _refused("sparse weights")
    for first, last in nodes:  # in an order in which they can be computed, or ONNX Runtime refuses them
        _check_node(reader, first, last, weights)


def _check_node(reader: _Reader, start: int, end: int, weights: set[bytes]) -> None:
    """Check a node; what it makes of weights alone joins them."""
    operator, domain = b"", b""
    inputs: list[bytes] = []
    outputs: list[bytes] = []
    for number, _, first, last in reader.fields(start, end):
        if number in (1, 2):
            (inputs if number == 1 else outputs).append(reader.content[first:last])
        elif number == 4:
            operator = reader.content[first:last]
        elif number == 7:
            domain = reader.content[first:last]
        elif number == 5:
            for inner, _, begin, stop in reader.fields(first, last):
                if inner in (5, 10):  # a tensor, tensors
                    _check_tensor(reader, begin, stop)
                elif inner in (6, 11, 22, 23):  # a graph, graphs, sparse tensors
                    raise _refused("a loop, a branch or sparse weights")
    if operator.decode("ascii", "replace") not in OPERATORS or domain not in DOMAINS:
        raise _refused(f"the operator {operator.decode('ascii', 'replace')[:40]!a}")
    if weights.issuperset(filter(None, inputs)):
        if operator.decode() not in FROM_WEIGHTS:
            raise _refused(f"the operator {operator.decode()} on weights alone")
        weights.update(outputs)


def _check_tensor(reader: _Reader, start: int, end: int) -> bytes:
    """Check a tensor; its name."""
    name = b""
    for number, kind, first, last in reader.fields(start, end):
        if number == 13 or (number == 14 and kind == 0 and reader.content[first:last] != b"\0"):
            raise _refused("weights in other files")
        if number == 8:
            name = reader.content[first:last]
    return name


class _Reader:
    """The fields of protocol-buffer messages, so many of them at most in one file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number and wire type of each field of the message between two offsets, and where its value lies."""
        place = start
        while place < end:
            self._left -= 1
            if self._left < 0:
                raise _refused(f"more than {MAX_FIELDS} fields")
            tag, place = self._varint(place, end)
            kind = tag & 7
            if kind == 0:
                first, (_, last) = place, self._varint(place, end)
            elif kind == 2:
                length, first = self._varint(place, end)
                last = first + length
            elif kind in (1, 5):
                first, last = place, place + (8 if kind == 1 else 4)
            else:  # groups are of before ONNX
                raise ModelFormatError(f"expected an ONNX model, got a field of type {kind}; {_MALFORMED}")
            if last > end:
                raise ModelFormatError(f"expected an ONNX model, got {end - start} bytes that end early; {_MALFORMED}")
            yield tag >> 3, kind, first, last
            place = last

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if place >= end:
                break
            byte = self.content[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place
        raise ModelFormatError(f"expected an ONNX model, got a number without an end; {_MALFORMED}")
