"""A faster forward and backward pass for open_clip's vision transformers, with the same weights and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ... import kernels
from ...compat import is_compiling, keep_buffers_of_compiled_code
from ...counterfactual.relevance import needs_weight_gradients
from ...errors import ConfigError
from ...precision import autocast_dtype, bfloat16_products, no_autocast

# The original function: a recorder of attention may replace the one in torch later.
_fused_attention = F.scaled_dot_product_attention
# Elements of attention matrices computed at once on a CPU; they about fit its cache.
_CPU_CHUNK = 2**20
# GPUs with less memory, in bytes, recompute cheap activations.
_LARGE_MEMORY = 40e9


def on_cpu(device: torch.device) -> bool:
    """Whether the code paths for CPUs apply to this device."""
    return device.type == 'cpu'


def make_lean(visual: nn.Module, compiled: bool = False, recompute: bool | None = None) -> None:
    """Replace the standard parts of an open_clip tower by faster ones, in place.

    Weights, their names, hooks and sub-modules stay; features and gradients are equal up to rounding:

    - The last block computes the class token only, because nothing else of it is used (saves a twelfth of ViT-B's work,
      except for keys and values).
    - Attention works on (B, L, C) directly; ``nn.MultiheadAttention`` transposes and copies.
    - QuickGELU keeps one tensor for its backward pass, not three. With ``recompute``, the outputs of QuickGELU and the
      layer norms are recomputed there.
    - Layer norms under autocast on a GPU work in the precision of their input; autocast would add float32 copies.
    - The patch embedding is a matrix product (the backward pass of the convolution is slow in bfloat16).
    - Attention in bfloat16 on a CPU has a backward pass of matrix products; the fused kernel is several times slower.

    Modules of other types, or with other options, are left alone.

    Args:
        visual (nn.Module): The image tower of an open_clip model.
        compiled (bool): Run the operations between the matrix products of a block through ``torch.compile``. The
            products stay outside: a compiled backward pass always computes the gradients of all its weights, which the
            relevance map does not need.
        recompute (bool, optional): Recompute the outputs of QuickGELU and the layer norms in the backward pass. None:
            see :func:`recomputes_on`.

    Raises:
        ConfigError: ``compiled``, but the blocks are not standard ones.
    """
    for module in visual.modules():
        if type(module) is QuickGELU:
            module.__class__ = LeanQuickGELU
            module.compiled = compiled  # type: ignore[assignment]
        elif type(module) is LayerNorm:
            module.__class__ = LeanLayerNorm
        elif type(module) is nn.MultiheadAttention and _is_plain_attention(module):
            module.__class__ = LeanAttention
            module.scaled_dot_product_attention = attention  # type: ignore[assignment]
    stock = (
        type(visual) is VisionTransformer and type(visual.transformer) is Transformer and visual.transformer.batch_first
    )
    if stock and all(size % patch == 0 for size, patch in zip(visual.image_size, visual.patch_size)):
        visual.__class__ = LeanVisionTransformer
    stock = (
        stock
        and visual.attn_pool is None
        and visual.pool_type == 'tok'
        and not visual.output_tokens
        and all(
            type(block) is ResidualAttentionBlock
            and type(block.attn) is LeanAttention
            and not hasattr(block, 'ln_1_kv')
            for block in visual.transformer.resblocks
        )
    )
    if stock:
        visual.transformer.__class__ = LeanTransformer
        visual.transformer.recompute = recompute
        for block in visual.transformer.resblocks:
            block.__class__ = LeanBlock
            block.compiled = compiled
    elif compiled:
        raise ConfigError(
            f'compile=True is for plain ViTs of open_clip with a class token, not for this {type(visual).__name__}'
        )


def _is_plain_attention(module: nn.MultiheadAttention) -> bool:
    return (
        module.batch_first
        and module._qkv_same_embed_dim
        and module.in_proj_bias is not None
        and module.bias_k is None
        and not module.add_zero_attn
        and not module.dropout
    )


class LeanVisionTransformer(VisionTransformer):
    """The patch embedding as a matrix product, except in float32 on a CPU, where the convolution is as fast, and in a
    graph that torch traces."""

    def _embeds(self, x: Tensor) -> Tensor:
        if is_compiling() or (on_cpu(x.device) and x.dtype == torch.float32 and not autocast_dtype('cpu')):
            return super()._embeds(x)
        rows, cols = (size // patch for size, patch in zip(x.shape[-2:], self.patch_size))
        x = x.unflatten(3, (cols, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 1, 3, 5)  # (B, h, w, 3, H/h, W/w)
        x = F.linear(x.reshape(len(x), rows * cols, -1), self.conv1.weight.flatten(1))
        cls = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding.to(x.dtype)
        return self.ln_pre(self.patch_dropout(x))


class LeanTransformer(Transformer):
    """Returns the class token only, (B, 1, C).

    Attributes:
        recompute (bool, optional): Blocks recompute cheap activations in the backward pass, unless they are
            checkpointed. None: see :func:`recomputes_on`.
    """

    recompute: bool | None = None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        # In a graph that torch traces, or without a backward pass, there is nothing to recompute.
        recompute = torch.is_grad_enabled() and not is_compiling() and not self.grad_checkpointing
        if recompute:
            recompute = recomputes_on(x.device) if self.recompute is None else self.recompute
        for block in self.resblocks:
            args = (x, None, None, attn_mask, attn_mask is None and block is self.resblocks[-1], recompute)
            x = checkpoint(block, *args, use_reentrant=False) if self.grad_checkpointing else block(*args)
        return x


@cache
def recomputes_on(device: torch.device) -> bool:
    """The default of ``recompute`` on this device: True except on GPUs with 40 GB or more, which have room for the
    activations at the usual batch sizes (docs/performance.md has numbers)."""
    return device.type != 'cuda' or torch.cuda.get_device_properties(device).total_memory < _LARGE_MEMORY


class LeanBlock(ResidualAttentionBlock):
    """A block that can compute the class token only.

    Attributes:
        compiled (bool): Run the sum and normalisation between attention and MLP through ``torch.compile``.
    """

    compiled = False

    def forward(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
        cls_only: bool = False,
        recompute: bool = False,
    ) -> Tensor:
        if k_x is not None or v_x is not None or attn_mask is not None:
            return super().forward(q_x, k_x, v_x, attn_mask)
        compiled = self.compiled and not is_compiling()
        normed = self.ln_1(q_x)
        x, query = (q_x[:, :1], normed[:, :1]) if cls_only else (q_x, normed)
        keep = recomputed if recompute and not compiled else _kept
        with keep(normed, self.ln_1, q_x):
            update = self.ls_1(self.attn(query, normed, normed, need_weights=False)[0])
        if compiled:  # as (B·T, C): one compiled version serves every number of rows
            x, normed = (
                part.view_as(update)
                for part in _compiled(_add_and_normalize)(x.flatten(0, 1).contiguous(), update.flatten(0, 1), self.ln_2)
            )
        else:
            x, normed = _add_and_normalize(x, update, self.ln_2)
        with keep(normed, self.ln_2, x):
            hidden = self.mlp.c_fc(normed)
        active = self.mlp.gelu(hidden)
        with keep(active, self.mlp.gelu, hidden):
            return x + self.ls_2(self.mlp.c_proj(active))


@contextmanager
def recomputed(tensor: Tensor, function: Callable[[Tensor], Tensor], source: Tensor) -> Iterator[None]:
    """Operations inside the context that would save ``tensor`` for their backward pass save ``source`` in its place and
    recompute ``function(source)``.

    This pays if ``function`` is cheap and ``source`` is saved anyway. Do not use it inside an activation checkpoint,
    which saves neither, or for second derivatives. Only gradients of weights may need ``tensor``, as for the input of a
    linear layer: if none are asked for (:func:`mmcfmask.counterfactual.relevance.activations_only`), nothing is
    recomputed and NaN stands in its place.
    """
    here = tensor.data_ptr(), tensor.numel()  # autograd keeps pack alive, which must not keep the tensor alive
    source, dtype = source.detach(), tensor.dtype

    def pack(saved: Tensor) -> Tensor | torch.Size:
        # Detached: otherwise an output would keep alive the operation that keeps it alive.
        return saved.shape if (saved.data_ptr(), saved.numel()) == here else saved.detach()

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if not needs_weight_gradients():
            return source.new_full((), float('nan'), dtype=dtype).expand(packed)
        # A cast restores the dtype. Autocast would clear the cache of cast weights for all threads when it ends.
        with torch.no_grad():
            return function(source).to(dtype).view(packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _kept(tensor: Tensor, function: Callable[[Tensor], Tensor], source: Tensor) -> nullcontext:
    return nullcontext()


def _add_and_normalize(x: Tensor, update: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    x = x + update
    return x, norm(x)


@cache
def _compiled(function: Callable, **kwargs: Any) -> Callable:
    keep_buffers_of_compiled_code()
    return torch.compile(function, **kwargs)


class LeanLayerNorm(LayerNorm):
    """Under autocast on a GPU, works in the dtype of its input, with statistics in float32 as usual.

    Autocast on a GPU would cast the input to float32 and the output back, which moves four times the bytes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if on_cpu(x.device) or x.dtype == self.weight.dtype or self.weight.dtype != torch.float32 or is_compiling():
            return super().forward(x)  # when compiled, no copies are written
        with no_autocast():
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class LeanAttention(nn.MultiheadAttention):
    """Attention of (B, T, C) queries to (B, L, C) tokens without transposing or copying them.

    Attributes:
        scaled_dot_product_attention (Callable): Called with q, k, v; a recorder replaces it.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if need_weights or attn_mask is not None or args or kwargs or key is not value or query.dim() != 3:
            kwargs.update(need_weights=need_weights, attn_mask=attn_mask)
            return super().forward(query, key, value, *args, **kwargs)
        return self.merge(self.scaled_dot_product_attention(*self.project(query, key))), None

    def project(self, query: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        """q, k, v: (B, heads, T or L, d) of a query (B, T, C) to tokens (B, L, C)."""
        if query is tokens:
            return self._heads(self.project_parts(tokens), 3)
        return *self._heads(self.project_parts(query, 0, 1), 1), *self._heads(self.project_parts(tokens, 1, 3), 2)

    def project_parts(self, x: Tensor, first: int = 0, last: int = 3) -> Tensor:
        """(B, L, (last − first) · C): some of q, k and v of x (B, L, C)."""
        if last - first == 3:  # autocast keeps its copy of a whole weight
            return F.linear(x, self.in_proj_weight, self.in_proj_bias)
        rows = slice(first * self.embed_dim, last * self.embed_dim)
        return F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])

    def merge(self, output: Tensor) -> Tensor:
        """(B, T, C) of the heads' outputs (B, heads, T, d)."""
        return self.out_proj(output.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, L, parts · C) as ``parts`` views (B, heads, L, d)."""
        # Unbound before it is transposed: the backward pass then needs one copy, not two.
        return tuple(part.transpose(1, 2) for part in x.unflatten(2, (parts, self.num_heads, self.head_dim)).unbind(2))


class LeanQuickGELU(QuickGELU):
    """x · sigmoid(1.702 x), keeping one tensor for the backward pass.

    Attributes:
        compiled (bool): Run it through ``torch.compile``.
    """

    compiled = False

    def forward(self, x: Tensor) -> Tensor:
        if is_compiling():  # exported graphs have operations of every backend only
            return _quick_gelu(x)
        return _compiled(_quick_gelu)(x.flatten(0, -2)).view_as(x) if self.compiled else _QuickGELU.apply(x)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class _QuickGELU(torch.autograd.Function):
    """x · sigmoid(a x) = silu(a x) / a; its derivative is the derivative of silu at a x.

    The backward pass of softplus, log(1 + exp(a x)) / a, gives the same for a gradient of x, in one pass over memory
    in place of three.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.ops.aten.softplus_backward(x, x, 1.702, 40.0)  # above 40 the sigmoid is 1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if kernels.fits_quick_gelu(x.device, x.dtype):
            return kernels.quick_gelu_backward(grad, x)
        return torch.ops.aten.silu_backward(grad, x * 1.702)


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """``scaled_dot_product_attention`` with a faster backward pass in bfloat16 on a CPU."""
    low = on_cpu(query.device) and query.dtype == torch.bfloat16 and torch.is_grad_enabled() and not is_compiling()
    if low and not args and not kwargs:
        return _LowPrecisionCPUAttention.apply(query, key, value, attn_mask)
    return _fused_attention(query, key, value, attn_mask, *args, **kwargs)


class _LowPrecisionCPUAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.mask = mask
        return _fused_attention(query, key, value, mask)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @no_autocast()
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shape, scale = grad.shape, grad.shape[-1] ** -0.5
        # (B · heads, L, d), so that the products make no copies.
        query, key, value, grad = (x.flatten(0, 1).contiguous() for x in (*ctx.saved_tensors, grad))
        grads = [torch.empty_like(x) for x in (query, key, value)]
        size = max(1, _CPU_CHUNK // (query.shape[1] * key.shape[1]))
        mask = None if ctx.mask is None else ~ctx.mask.expand(*shape[:3], key.shape[1]).flatten(0, 1)
        for part in (slice(start, start + size) for start in range(0, len(query), size)):
            q, k, v, g = query[part], key[part], value[part], grad[part]
            with bfloat16_products():  # scores are not rounded, as in the fused kernel
                scores = torch.bmm(q.float(), k.float().mT).mul_(scale)
            if mask is not None:
                scores.masked_fill_(mask[part], float('-inf'))
            weights = scores.softmax(dim=-1).to(q.dtype)
            torch.bmm(weights.mT, g, out=grads[2][part])
            delta = torch.ops.aten._softmax_backward_data(torch.bmm(g, v.mT), weights, -1, weights.dtype)
            torch.bmm(delta, k * scale, out=grads[0][part])
            torch.bmm(delta.mT, q * scale, out=grads[1][part])
        grads = [x.unflatten(0, shape[:2]) for x in grads]
        return *grads, None
