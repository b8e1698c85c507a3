"""What a model does on one device and on many, simulated on a CPU. Run as a program, it writes arrays for a test.

python many_devices.py OUT.npz                         on one, and on four devices of this process
python many_devices.py OUT.npz 0 HOST:PORT             as the first of two processes of one device each
"""

import json
import os
import sys
from pathlib import Path

HERE, ADDRESS = (int(sys.argv[2]), sys.argv[3]) if len(sys.argv) > 2 else (None, None)
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 if HERE is None else 1}"
if HERE is not None and os.environ["KERAS_BACKEND"] == "tensorflow":
    host, port = ADDRESS.split(":")
    workers = {"worker": [ADDRESS, f"{host}:{int(port) + 1}"]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": workers, "task": {"type": "worker", "index": HERE}})

import keras  # noqa: E402
import numpy as np  # noqa: E402
from helpers import output_of, random_inputs, randomized, tiny_text_unet  # noqa: E402

from diffusion.helpers import network, pixels, trainer  # noqa: E402
from unet_keras import Checkpoint, LossGuard, Redrawn, unet_layout  # noqa: E402

BACKEND = keras.backend.backend()
COUNT = 8 if BACKEND == "jax" else 7  # which four, or two, do not share evenly
IMAGES, LABELS, WEIGHTS = pixels(COUNT), np.arange(COUNT, dtype="int32") % 3, np.linspace(0.5, 2, COUNT)
FIRST, SECOND, ALL = slice(0, 4), slice(4, None), slice(None)


def made(**options):
    clipped = keras.optimizers.SGD(0.5, global_clipnorm=0.2)  # the gradient of all, not of a part
    return trainer(4, **{"drop": 0.5, "ema": 0.9, "seed": 1, "optimizer": clipped, **options})


def doings(model, part=ALL):
    """Train 20 steps on a part of the images, validate and sample."""
    images, labels = IMAGES[part], LABELS[part]
    options = {"batch_size": len(images), "sample_weight": WEIGHTS[part], "verbose": 0}
    history = model.fit(images, labels, epochs=20, shuffle=False, **options).history
    found = {"losses": history["loss"], "validation": model.evaluate(images, labels, **options)}
    found["weights"] = np.concatenate([w.ravel() for w in model.get_weights()])
    asked = {"steps": 2, "guidance": 2.0, "seed": 3, "progress": False}
    return found | {"images": model.generate([0, 1, 2, 0, 1], batch_size=3, **asked)}


def kept(part):
    """Train on two batches for three epochs; and again, cut off in the second epoch and taken up by another model."""
    images, labels, folder = IMAGES[part][:4], {"label": LABELS[part][:4]}, Path(sys.argv[1]).parent

    def trained(name, *cuts):
        for cut in (*cuts, None):
            data = Redrawn(images, lambda rng: labels, batch_size=2)
            model, checkpoint, seen = made(), Checkpoint(folder / name, data, every=1e9), []

            def end(batch, logs, model=model, cut=cut, seen=seen):
                seen.append(batch)
                model.stop_training = len(seen) == cut

            callbacks = [
                LossGuard(data[0], checkpoint),
                checkpoint,
                keras.callbacks.LambdaCallback(on_train_batch_end=end),
            ]
            model.fit(data, epochs=3, callbacks=callbacks, verbose=0, **checkpoint.resume(model))
        return np.concatenate([w.ravel() for w in model.get_weights()]), len(seen)

    (whole, _), (resumed, rest) = trained("whole"), trained("cut", 3)
    return {"whole": whole, "resumed": resumed, "rest": rest}


def trained_parallel():
    """Train a network whose weights may be cut up: the losses, and all weights after five steps."""
    net = randomized(tiny_text_unet(levels=[4]))
    given = {name: v for name, v in random_inputs(net, 8).items() if name not in ("image", "timestep")}
    model = trainer(net=net, optimizer=keras.optimizers.SGD(0.1, global_clipnorm=0.1))
    losses = model.fit(pixels(8), given, batch_size=8, epochs=5, shuffle=False, verbose=0).history["loss"]
    return np.concatenate([losses, *(w.ravel() for w in model.get_weights())])


def four_on_jax():
    before = alone(doings(made()))
    network = tiny_text_unet(levels=[4])
    inputs = random_inputs(network, 2)
    before |= alone({"forward": output_of(randomized(network), inputs), "trained": trained_parallel()})
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    model = made()
    many = doings(model) | {"refused": refused(model.fit, IMAGES[:6], LABELS[:6])}
    *_, frame = model.denoising([0, 1, 2, 0], steps=1)
    many["shards"] = len({s.index[0].start for s in frame.x.addressable_shards})
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"))
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=unet_layout(mesh)))
    network = randomized(tiny_text_unet(levels=[4]))
    many["forward"] = output_of(network, inputs)
    many["trained"] = trained_parallel()
    cut = [v for v in network.weights if v.value.addressable_shards[0].data.size < v.value.size]
    many["cut"] = sum(v.value.size for v in cut) / network.count_params()
    return before | many


def four_on_tensorflow():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    before = alone(doings(made()))
    with tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(4)]).scope():
        model = made()
        many = {
            "accumulated": refused(made, optimizer=keras.optimizers.SGD(gradient_accumulation_steps=2)),
            "together": refused(made, compiled={"steps_per_execution": 2}),
        }
        many["scaled"] = overflowing()
    many |= doings(model) | {"refused": refused(model.fit, IMAGES[:6], LABELS[:6])}
    traces = [trace for step in model._steps.values() for trace in step._list_all_concrete_functions()]
    return before | many | {"copies": len({weight.device for trace in traces for weight in trace.captured_inputs})}


def overflowing():
    """Train in float16: two steps, and three whose loss overflows on the last two of four devices alone.

    Gives how many steps were taken, how far the scale fell, and whether the weights are finite.
    """
    keras.config.set_dtype_policy("mixed_float16")
    net = network()
    keras.config.set_dtype_policy("float32")
    inner = keras.optimizers.SGD(0.1, global_clipnorm=1.0)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**10)
    model, options = trainer(net=net, optimizer=optimizer), {"batch_size": 8, "shuffle": False, "verbose": 0}
    for weights, epochs in ((np.ones(8), 2), (np.repeat([1.0, 1e8], 4), 3)):
        model.fit(pixels(8), sample_weight=weights, epochs=epochs, **options)
    done, scale = (keras.ops.convert_to_numpy(v) for v in (optimizer.iterations, optimizer.dynamic_scale))
    return [done, scale / 2.0**10, all(np.isfinite(w).all() for w in model.get_weights())]


def alone(found):
    return {f"alone_{name}": value for name, value in found.items()}


def refused(function, *args, **options):
    try:
        function(*args, **options)
    except ValueError as error:
        return str(error)
    return ""


def one_of_two():
    """The same in two processes."""
    if BACKEND == "jax":
        keras.distribution.initialize(ADDRESS, 2, HERE)
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
        return doings(made(), (FIRST, SECOND)[HERE]) | kept((FIRST, SECOND)[HERE])
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.distribute.MultiWorkerMirroredStrategy().scope():
            model = made()
            found = kept(ALL)
        return doings(model) | found
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://{ADDRESS}", rank=HERE, world_size=2)
    found = doings(made(seed=1 + HERE), (FIRST, SECOND)[HERE])  # the first process's holds
    found |= kept((FIRST, SECOND)[HERE])
    found["refused"] = refused(made, remat=True, net=tiny_text_unet(levels=[4]), null={}, drop=0.0)
    dist.destroy_process_group()
    if HERE == 1:
        return found
    return found | alone(doings(made()))


if __name__ == "__main__":
    several = {"jax": four_on_jax, "tensorflow": four_on_tensorflow}
    np.savez(sys.argv[1], **(several[BACKEND]() if HERE is None else one_of_two()))
