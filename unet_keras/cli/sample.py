"""Sample images from a run folder, a preset or a .keras file."""

from pathlib import Path

import keras
from PIL import Image

from unet_keras import pipeline, plots
from unet_keras.cli.asking import asked, opened
from unet_keras.diffusion import multicall, multistep, samplers

SAMPLERS = {
    "ddim": samplers.ddim,
    "ddpm": samplers.ddpm,
    "euler": samplers.euler,
    "euler-ancestral": samplers.euler_ancestral,
    "heun": multicall.heun,
    "dpm2": multicall.dpm2,
    "dpm2-ancestral": multicall.dpm2_ancestral,
    "dpmpp-2s-ancestral": multicall.dpmpp_2s_ancestral,
    "dpmpp-sde": multicall.dpmpp_sde,
    "lms": multistep.lms,
    "plms": multistep.plms,
    "deis": multistep.deis,
    "dpmpp-2m": multistep.dpmpp_2m,
    "dpmpp-2m-sde": multistep.dpmpp_2m_sde,
    "dpmpp-3m": multistep.dpmpp_3m,
    "dpmpp-3m-sde": multistep.dpmpp_3m_sde,
    "unipc": multistep.unipc,
    "lcm": samplers.lcm,
}

EXAMPLES = """Sample images from a run folder, a preset or a .keras file.

examples:
  unet-keras sample --preset emoji-32 "a red apple" "blue heart"
  unet-keras sample runs/emoji                        a grid of 16 in runs/emoji/samples.png
  unet-keras sample runs/emoji --count 64 --steps 100 --seed 7 --out grid.png --each pictures
  unet-keras sample runs/photos --class cats --guidance 3 --gif cats.gif
  unet-keras sample runs/words "a red apple" --count 9 --attention words.png
"""


def add_options(p):
    """Add the command's options to its parser."""
    add = p.add_argument
    add("given", nargs="*", metavar="MODEL | PROMPT", help="a run folder or a .keras file; then prompts, if it reads")
    add("--preset", metavar="NAME", help="a preset in the place of MODEL, by its name or folder")
    add("--count", type=int, help="images, of each prompt if there are any (default: 16, or 4 of each prompt)")
    add(
        "--steps",
        type=int,
        default=50,
        help="some samplers call the network twice a step (default: %(default)s)",
    )
    add("--sampler", choices=SAMPLERS, default="ddim", help="(default: %(default)s)")
    add("--class", dest="label", help="the class to sample, by name or number; all in turn unless given")
    add("--guidance", type=float, help="how strictly to keep to prompt and class; 1 is as trained (default: 3 or 1)")
    add("--negative", metavar="PROMPT", help="what guidance is to lead away from")
    add(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="for a network that leaves the images' size open"
    )
    add("--seed", type=int, default=0, help="another seed, other images (default: %(default)s)")
    add("--out", type=Path, help="the grid's file (default: samples.png, in the run folder if there is one)")
    add("--each", type=Path, help="a folder to write the images to one by one as well")
    add("--gif", type=Path, help="a file for an animation from noise to image")
    add("--attention", type=Path, help="a file for the first image of each prompt, and where it looked at each word")
    p.set_defaults(run=sample)


def sample(arguments) -> None:
    """Sample, and write a grid; single images, an animation and attention maps if asked for."""
    if arguments.count is not None and arguments.count < 1:
        raise ValueError(f"--count must be 1 or more, got {arguments.count}.")
    _check_files(out=arguments.out, gif=arguments.gif, attention=arguments.attention)
    if arguments.each and arguments.each.exists() and not arguments.each.is_dir():
        raise ValueError(f"--each must be a folder, and {arguments.each} is a file.")
    path, *prompts = [None, *arguments.given] if arguments.preset else arguments.given or [None]
    model, names, home = opened(arguments.preset, path)
    count = (4 if prompts else 16) if arguments.count is None else arguments.count
    conditions, captions = asked(model, names, prompts, count, arguments.label)
    guidance = _usual_guidance(model, prompts) if arguments.guidance is None else arguments.guidance
    options = {"steps": arguments.steps, "guidance": guidance, "seed": arguments.seed}
    options["sampler"] = SAMPLERS[arguments.sampler]
    if arguments.negative is not None:
        options["negative"] = [arguments.negative]
    if arguments.size is not None:
        options["size"] = tuple(arguments.size)
    if arguments.attention and not prompts:
        raise ValueError("--attention needs prompts: there is nothing to look at without.")
    images = model.generate(conditions, **options)
    out = arguments.out or home / "samples.png"
    plots.grid(images, captions=captions, columns=count if len(prompts) > 1 else None, path=out)
    print(out)
    if arguments.each:
        for i, image in enumerate(images):
            plots.grid(image[None], scale=1, padding=0, path=arguments.each / f"{i:04d}.png")
        print(arguments.each)
    if arguments.gif:
        frames = [keras.ops.convert_to_numpy(frame.x) for frame in model.denoising(conditions, **options)]
        print(plots.animation(frames, arguments.gif))
    if arguments.attention:
        _attention(arguments.attention, model, conditions, count, prompts, options)


def _check_files(**files):
    """Raise ValueError, before minutes of sampling, for a picture's file whose name does not end as one's."""
    for option, file in files.items():
        kind = Image.registered_extensions().get(Path(file).suffix.lower()) if file is not None else None
        if file is not None and kind not in Image.SAVE:
            raise ValueError(f"--{option} must end as a picture's name does, in .png for one, got {str(file)!r}.")


def _usual_guidance(model, prompts):
    """3 for prompts, where training dropped them."""
    return 3.0 if prompts and set(model.encoder([""])) & set(model.dropping.learned) else 1.0


def _attention(path, model, conditions, count, prompts, options):
    """Draw where the first image of each prompt looked at each word; with more than one prompt a file each."""
    found = pipeline.attention(model, conditions, **options)
    for i in range(len(prompts)):
        file = path if len(prompts) == 1 else path.with_stem(f"{path.stem}_{i}")
        first = i * count
        plots.attention(found.images[first], found.words[first], found.maps[first], path=file)
        print(file)
