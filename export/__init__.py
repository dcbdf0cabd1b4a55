"""Checkpoint -> float ONNX -> int8 ONNX -> one calibrated file, each step with its gate.

``python -m export CHECKPOINT -o FILE --speech SET...`` runs the whole chain (`export.chain`).
"""
