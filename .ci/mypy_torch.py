"""A plugin of mypy: attributes of an ``nn.Module`` have any type.

torch gives every submodule, parameter and buffer of a module the type ``Tensor | Module``, so that ``tower.patch_size``
or ``tower.encode_text(…)`` counts as an error.
"""

from collections.abc import Callable

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny, UnionType, get_proper_type

TENSOR_OR_MODULE = {'torch._tensor.Tensor', 'torch.nn.modules.module.Module'}


def any_type(context: AttributeContext) -> Type:
    """Any, in place of the type ``Tensor | Module`` that ``nn.Module.__getattr__`` gives."""
    found = get_proper_type(context.default_attr_type)
    if isinstance(found, UnionType):
        names = {getattr(getattr(get_proper_type(item), 'type', None), 'fullname', None) for item in found.items}
        if names == TENSOR_OR_MODULE:
            return AnyType(TypeOfAny.from_another_any, source_any=AnyType(TypeOfAny.explicit))
    return context.default_attr_type


class TorchPlugin(Plugin):
    """Makes the attributes of modules untyped."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type]:
        return any_type


def plugin(version: str) -> type[Plugin]:
    """What mypy calls."""
    return TorchPlugin
