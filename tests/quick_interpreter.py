"""Triton 3.6's interpreter without what it does over and over to the same end, in a fourth of the time.

Each of the functions below takes the place of one of Triton's that does the same, more slowly.
"""

import dataclasses

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

core = tl.core


def install(monkeypatch) -> None:
    """Replaces them for as long as ``monkeypatch`` lasts."""
    monkeypatch.setattr(interpreter, "_patch_lang", _Patch())
    monkeypatch.setattr(interpreter, "_patch_attr", _patch_attr)
    monkeypatch.setattr(interpreter, "_get_np_dtype", _NumpyTypes(interpreter._get_np_dtype))
    # Of each integer sum it computes in 64 bits whether it overflowed, to say so in debug mode alone.
    options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)
    monkeypatch.setattr(core, "_type_for_tuple_values", _TypeWhenAsked)
    monkeypatch.setattr(core, "_unwrap_if_constexpr", _Unwrap(core._unwrap_if_constexpr))
    monkeypatch.setattr(core.tensor, "__init__", _init_tensor)
    monkeypatch.setattr(TritonSemantic, "broadcast_impl_value", _unless_alike(TritonSemantic.broadcast_impl_value))
    monkeypatch.setattr(
        TritonSemantic, "binary_op_type_checking_impl", _unless_numbers(TritonSemantic.binary_op_type_checking_impl)
    )
    known = _BlockTypes(core.block_type.__init__)
    monkeypatch.setattr(core.block_type, "__new__", known.find)
    monkeypatch.setattr(core.block_type, "__init__", lambda self, element_ty, shape: None)


class _Patch:
    """In place of `_patch_lang`, which patches the language anew for each jitted function that a kernel calls."""

    def __init__(self):
        self._patch = interpreter._patch_lang

    def __call__(self, function):
        languages = [each for each in function.__globals__.values() if each is tl or each is core]
        patched = not any(core.is_builtin(each.load) for each in languages)
        return interpreter._LangPatchScope() if patched else self._patch(function)


def _patch_attr(obj, name, member, builder, scope):
    semantic = interpreter.TritonSemantic(builder)

    def call(*args, **kwargs):
        kwargs["_semantic"] = semantic
        return member(*args, **kwargs)

    scope.set_attr(obj, name, call)


def _unless_alike(broadcast):
    """What two tensors of one type broadcast to is themselves."""
    return lambda self, a, b: (a, b) if a.type is b.type else broadcast(self, a, b)


def _unless_numbers(check):
    """What two tensors of the same kind of numbers are cast to is that, but to be divided."""

    def check_types(self, lhs, rhs, allow_lhs_ptr=False, allow_rhs_ptr=False, arithmetic_check=True, div_or_mod=False):
        alike = type(lhs) is type(rhs) is core.tensor and lhs.dtype is rhs.dtype and not lhs.dtype.is_ptr()
        if alike and not div_or_mod:
            return self.broadcast_impl_value(lhs, rhs)
        return check(self, lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)

    return check_types


class _NumpyTypes(dict):
    """In place of `_get_np_dtype`, which makes a table of all types for each question."""

    def __init__(self, find):
        self._find = find

    def __call__(self, dtype) -> np.dtype:
        if (found := self.get(dtype.name)) is None:
            found = self[dtype.name] = self._find(dtype)
        return found


class _TypeWhenAsked(core.tuple_type):
    """The type of a tuple of Triton's language, of which there is one for every shape, made when it is asked for."""

    def __init__(self, values, fields=None):
        self._made_of = values, fields

    def __getattr__(self, name):
        values, fields = self._made_of
        constants = (int, float, tl.dtype)
        types = [core.constexpr_type(each) if isinstance(each, constants) else each.type for each in values]
        super().__init__(types, fields)
        return self.__dict__[name]


class _Unwrap(dict):
    """In place of `_unwrap_if_constexpr`, which asks everything in turn what kind of sequence it is.

    It knows of each type whether it has to be unwrapped.
    """

    def __init__(self, unwrap):
        self._unwrap = unwrap

    def __missing__(self, kind):
        self[kind] = issubclass(kind, (list, tuple, core.tuple, core.constexpr))
        return self[kind]

    def __call__(self, value):
        if type(value) is core.constexpr:
            return value.value
        return self._unwrap(value) if self[type(value)] else value


class _BlockTypes(dict):
    """All block types that there are, each made once."""

    def __init__(self, init):
        self._init = init

    def find(self, cls, element_ty, shape):
        numbers = (*(each.value if type(each) is core.constexpr else each for each in shape),)
        if (found := self.get((element_ty.name, numbers))) is None:
            found = self[element_ty.name, numbers] = object.__new__(cls)
            self._init(found, element_ty, shape)
            found.as_constants = _constants(found.shape)
        return found


def _constants(shape):
    return core.constexpr(int(np.prod(shape.values))), core.tuple([core.constexpr(each) for each in shape])


_SCALAR = _constants(core.tuple([]))


def _init_tensor(self, handle, type):
    """In place of that of tensors, which makes constants of the numbers of its shape."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = type.as_constants if type.is_block() else _SCALAR
