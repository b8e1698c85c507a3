"""Which axes of a U-Net's weights lie on which devices, for ``keras.distribution.ModelParallel`` on JAX.

Layers that follow each other are cut in pairs (Shoeybi et al. 2019, section 3): the first by what it gives, the second
by what it takes, so that nothing passes between devices but a sum after the second. The pairs are conv1 and conv2 of a
block, with the map of the timestep and the norm between them; the heads of attention and its output; the two halves of
a gated feed-forward and its output. Other large layers are cut by what they give; JAX moves what is needed elsewhere.
"""

import keras

PART = r"(down\d+|bridge|up\d+).*"

AXES = {
    PART + r"(_conv1|_shortcut|_up|_down)/kernel": (None, None, None, "model"),
    PART + r"_conv2/kernel": (None, None, "model", None),
    PART + r"(_emb|_proj_in|_feed_value|_feed_gate|/query|/key|/value)/kernel": (None, "model"),
    PART + r"(_feed_out|_proj_out|/out)/kernel": ("model", None),
    PART + r"(_conv1|_shortcut|_up|_down|_emb|_proj_in|_feed_value|_feed_gate|/query|/key|/value)/bias": ("model",),
}
"""{paths of weights: the axis of each that is cut}; every device has all of the others."""


def unet_layout(mesh: keras.distribution.DeviceMesh, axis: str = "model") -> keras.distribution.LayoutMap:
    """Give the layout of the U-Nets that ``build_unet`` writes, on a mesh of which one axis holds parts of the model.

        mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
        layout = keras.distribution.ModelParallel(layout_map=unet_layout(mesh), batch_dim_name="batch")
        keras.distribution.set_distribution(layout)     # before the network is built

    The average of the weights and the optimizer's state are laid out as the weights are. Channels, and heads times
    their width, must divide by the axis' devices, or JAX refuses to make the weight. Raises ValueError where the mesh
    has no such axis.
    """
    if axis not in mesh.axis_names:
        raise ValueError(f"mesh has the axes {tuple(mesh.axis_names)}, and none is {axis!r}.")
    layout = keras.distribution.LayoutMap(mesh)
    for paths, axes in AXES.items():
        layout[paths] = tuple(axis if cut else None for cut in axes)
    return layout
