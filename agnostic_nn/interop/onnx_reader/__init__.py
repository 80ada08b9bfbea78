"""Read a graph of ONNX.

`from_onnx.py` has the function that users call. `model.py` reads the file, and
`reader.py` converts its nodes with the handlers of `elementwise.py`, `shapes.py` and
`layers.py`; `call.py` is what a handler gets.
"""

__all__ = ()
