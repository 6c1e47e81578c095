"""The method written the slow, obvious way: attention with autograd through it, full matrices, loops over patches."""
import torch
import torch.nn.functional as F


def explicit_attention_block(block, x, attentions, key_mask=None):
    """One open_clip residual block with its attention matrix in the open, appended to ``attentions``."""
    attn = block.attn
    normed = block.ln_1(x)
    batch, length, width = normed.shape
    heads = attn.num_heads
    q, k, v = F.linear(normed, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (t.reshape(batch, length, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / (width // heads)**0.5
    if key_mask is not None:
        scores = scores.masked_fill(key_mask[:, None, None, :], float('-inf'))
    attention = scores.softmax(dim=-1)
    attentions.append(attention)
    out = (attention @ v).transpose(1, 2).reshape(batch, length, width)
    x = x + attn.out_proj(out)
    return x + block.mlp(block.ln_2(x))


def explicit_features(visual, images, attentions=None, key_mask=None, keep=None):
    """Features of open_clip's VisionTransformer, (B, D). ``key_mask`` (B, L) hides tokens; ``keep`` (B, k) drops all other patches."""
    attentions = [] if attentions is None else attentions
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.expand(len(x), 1, -1)
    x = torch.cat([cls, x], dim=1) + visual.positional_embedding
    if keep is not None:
        x = torch.stack([torch.cat([row[:1], row[1:][index]]) for row, index in zip(x, keep)])
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks:
        x = explicit_attention_block(block, x, attentions, key_mask)
    return visual.ln_post(x[:, 0]) @ visual.proj


def explicit_relevance(visual, classify, images, labels):
    """Relevance by the full matrix recursion R ← R + Ā R, with autograd's own gradients of every attention matrix."""
    attentions = []
    logits = classify(explicit_features(visual, images, attentions))
    score = sum(logits[i, y] for i, y in enumerate(labels))
    grads = torch.autograd.grad(score, attentions, retain_graph=True)
    size = attentions[0].shape[-1]
    relevance = torch.eye(size, dtype=images.dtype).repeat(len(images), 1, 1)
    for attention, grad in zip(attentions, grads):
        relevance = relevance + (attention * grad).clamp(min=0).mean(dim=1).detach() @ relevance
    side = round((size - 1)**0.5)
    return relevance[:, 0, 1:].reshape(-1, side, side)
