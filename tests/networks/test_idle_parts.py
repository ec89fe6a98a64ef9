"""Parts of a ViT that masked encoding passes by are refused, and those that learn are not."""

import pytest
import timm

from lit_ssl.networks.masked import refuse_idle_parts


def vit(**options):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, "num_classes": 0, **options})


@pytest.mark.parametrize("pooled", [True, False])
def test_a_classifier_is_idle(pooled):
    with pytest.raises(ValueError, match=r"the backbone's head would get no gradient: build it with num_classes=0"):
        refuse_idle_parts(vit(num_classes=4), pooled=pooled)
    frozen = vit(num_classes=4)
    frozen.head.requires_grad_(False)
    refuse_idle_parts(frozen, pooled=pooled)


def test_attention_pooling_learns_where_the_pooled_features_are_looked_at():
    attention = vit(global_pool="map", class_token=False)
    refuse_idle_parts(attention, pooled=True)
    with pytest.raises(ValueError, match=r"attn_pool would get no gradient: build it with global_pool='avg'"):
        refuse_idle_parts(attention, pooled=False)
    refuse_idle_parts(vit(), pooled=False)
