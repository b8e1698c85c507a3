"""Open a page in the browser to explore a model with."""

from unet_keras.cli.asking import opened
from unet_keras.cli.sample import SAMPLERS
from unet_keras.page import explore as page_of

EXAMPLES = """Open a page in the browser to explore a model with: its images, every step of them, every word.

examples:
  unet-keras explore --preset emoji-32                then open http://127.0.0.1:7860
  unet-keras explore runs/emoji --port 8000
  unet-keras explore runs/emoji --host 0.0.0.0        for every machine that reaches this one
"""


def add_options(p):
    """Add the command's options to its parser."""
    add = p.add_argument
    add("model", nargs="?", metavar="MODEL", help="a run folder or a .keras file")
    add("--preset", metavar="NAME", help="a preset in the place of MODEL, by its name or folder")
    add("--host", default="127.0.0.1", help="the address to listen at: this machine alone (default: %(default)s)")
    add("--port", type=int, default=7860, help="(default: %(default)s)")
    p.set_defaults(run=explore)


def explore(arguments) -> None:
    """Load the model and serve its page until Ctrl-C."""
    if arguments.preset and arguments.model:
        raise ValueError(f"Give MODEL or --preset, not both: got {arguments.model} and {arguments.preset}.")
    if not 1 <= arguments.port <= 65535:
        raise ValueError(f"--port must lie between 1 and 65535, got {arguments.port}.")
    model, names, _ = opened(arguments.preset, arguments.model)
    page = page_of(model, names, SAMPLERS)
    import gradio

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no font from elsewhere
    options = {"share": False, "quiet": True, "footer_links": [], "ssr_mode": False, "prevent_thread_lock": True}
    _, address, _ = page.launch(server_name=arguments.host, server_port=arguments.port, theme=theme, **options)
    print(f"{address}    Ctrl-C ends it.", flush=True)
    page.block_thread()
