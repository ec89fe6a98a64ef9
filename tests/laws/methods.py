"""Every method that the laws are held to: its name, and the arguments of ``lit-ssl`` that make it small.

A new method gets the laws by a line in ``METHODS``.
"""

CONV = ["--model.backbone", "convnet", "--model.backbone_options", "{width: 8, stages: 2, stem_stride: 2}"]
VIT = ["--model.backbone", "vit_tiny_patch16_224"]
VIT += ["--model.backbone_options", "{embed_dim: 32, depth: 2, num_heads: 2}"]
MLP = ["--model.backbone", "mlp", "--model.backbone_options", "{hidden: [64, 32]}"]
PROJECTOR = ["--model.projector_hidden", "32", "--model.projector_dim", "16"]
DECODER = ["--model.decoder_dim", "16", "--model.decoder_depth", "1", "--model.decoder_heads", "2"]
# So small a network with BatchNorm behind BatchNorm amplifies rounding a thousandfold and more in 100 steps; at lower
# rates, and with a layer less, float32's stays below the bound.
CALM = ["--model.num_directions", "64", "--model.projector_layers", "2", "--model.lr", "5e-5"]
SLOW = ["--model.lr", "0.1"]  # for the same reason
NARROW = ["--model.decoder_width", "8", "--data.image_size", "14"]  # convolutions in float64 are slow
QUICKSTART = ["--config", "data/quickstart"]
SHAPES = ["--config", "data/captioned_shapes", "--data.val_size", "256"]
TEXT = [*SHAPES, "--model.text_options", "{width: 32, depth: 1, heads: 2}"]

METHODS = {
    "simclr": ["--config", "method/simclr", *SLOW, *QUICKSTART, *CONV, *PROJECTOR],
    "simclr_hard": ["--config", "method/simclr_hard", *QUICKSTART, *CONV, *PROJECTOR],
    "moco": ["--config", "method/moco", "--model.queue_size", "256", *QUICKSTART, *CONV, *PROJECTOR],
    "moco_symmetric": [
        *("--config", "method/moco", "--model.symmetric", "true", "--model.queue_size", "200"),
        *(*QUICKSTART, *CONV, *PROJECTOR),
    ],
    "moco_v3": ["--config", "method/moco_v3", *SLOW, *QUICKSTART, *CONV, *PROJECTOR],
    "mae": ["--config", "method/mae", *QUICKSTART, *VIT, *DECODER],
    "mae_convnet": ["--config", "method/mae", "--model.mask_fill", "noise", *QUICKSTART, *CONV, *NARROW],
    "mcl": ["--config", "method/mcl", *QUICKSTART, *VIT, *PROJECTOR],
    "mcl_independent": ["--config", "method/mcl", "--model.mask_mode", "independent", *QUICKSTART, *VIT, *PROJECTOR],
    "fusion": ["--config", "method/fusion", *QUICKSTART, *VIT, *PROJECTOR, *DECODER],
    "vae": ["--config", "method/vae", *QUICKSTART, *CONV, *NARROW],
    "lejepa": ["--config", "method/lejepa", *CALM, *QUICKSTART, *VIT, *PROJECTOR],
    "clip": ["--config", "method/clip", *VIT, *TEXT],
    "siglip": ["--config", "method/siglip", *VIT, *TEXT],
    "slip": [
        *("--config", "method/slip", "--model.mask_ratio", "0.5", "--model.simclr_hidden", "32"),
        *("--model.simclr_dim", "16", *VIT, *TEXT),
    ],
}

# Further settings of methods that are there already.
VARIANTS = {"simclr_hard", "moco_symmetric", "mae_convnet", "mcl_independent", "slip"}

# Where neither the loss nor a norm couples the images of a batch: two half batches in a row are one whole batch.
UNCOUPLED = {
    "mae": METHODS["mae"],
    "vae": ["--config", "method/vae", *QUICKSTART, *MLP],
}

# Those that take a ViT, for parameters that are sharded over processes.
SHARDED = {
    name: given if VIT[1] in given else [*given, *VIT] for name, given in METHODS.items() if name not in VARIANTS
}
