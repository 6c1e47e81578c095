"""The heart of the method as plain functions on tensors: relevance of patches, masks, and fills."""

from .attention import (
    AttentionCall,
    AttentionRecord,
    after_position,
    drop_tokens,
    hide_patches,
    mask_keys,
    record_attention,
)
from .fills import DONORS, FILLS, choose_donors, multi_donors, refill, replace_patches, single_donors
from .masks import (
    MASKS,
    check_share,
    check_value,
    exact_random_mask,
    masked_patches,
    num_kept,
    object_coverage,
    patch_mask,
)
from .relevance import (
    attention_relevance,
    attention_relevances,
    check_relevance,
    compare_relevance,
    logits_and_relevance,
    patch_grid,
    relevance_map,
)
from .views import part_of_grid, random_color_mixing, random_views, relevance_center, zoom_in

__all__ = [
    'AttentionCall',
    'AttentionRecord',
    'DONORS',
    'FILLS',
    'MASKS',
    'after_position',
    'attention_relevance',
    'attention_relevances',
    'check_relevance',
    'check_share',
    'check_value',
    'choose_donors',
    'compare_relevance',
    'drop_tokens',
    'exact_random_mask',
    'hide_patches',
    'logits_and_relevance',
    'mask_keys',
    'masked_patches',
    'multi_donors',
    'num_kept',
    'object_coverage',
    'part_of_grid',
    'patch_grid',
    'patch_mask',
    'random_color_mixing',
    'random_views',
    'record_attention',
    'refill',
    'relevance_center',
    'relevance_map',
    'replace_patches',
    'single_donors',
    'zoom_in',
]
