"""What a copy of modern does not need: the parts that are off by default, each as an arm of a comparison with `d2`.

model.py does not know of this file: the harness looks here for variants that model.py lacks.
"""

variants = {
    "d2_value_embeddings": dict(n_layer=2, n_head=2, n_embd=128, max_len=256, value_embeddings=True),
    "d2_residual_scalars": dict(n_layer=2, n_head=2, n_embd=128, max_len=256, residual_scalars=True),
    "d2_rotated": dict(n_layer=2, n_head=2, n_embd=128, max_len=256, rotated=0.5),
    "d2_smear": dict(n_layer=2, n_head=2, n_embd=128, max_len=256, smear=True),
    "d2_swiglu": dict(n_layer=2, n_head=2, n_embd=128, max_len=256, swiglu=True),
    "d2_window": dict(n_layer=2, n_head=2, n_embd=128, max_len=256, window=0.25),
    "d2_all": dict(
        n_layer=2,
        n_head=2,
        n_embd=128,
        max_len=256,
        value_embeddings=True,
        residual_scalars=True,
        rotated=0.5,
        smear=True,
        swiglu=True,
        window=0.25,
    ),
}
