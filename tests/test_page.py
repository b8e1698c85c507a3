"""The page to explore a model with: what it shows, and the page itself in a browser."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from io import BytesIO

import keras
import numpy as np
import pytest
from PIL import Image

import unet_keras
from unet_keras import DiffusionModel, Level, TokenEncoder, attention, build_unet, class_label, cross_attention, ddpm
from unet_keras.cli import main
from unet_keras.page import _asked, explore, watch

BROWSER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1300,1250"
).split()


@pytest.fixture(scope="module")
def model():
    """A model that reads prompts and classes, and looks at some words more than at others."""
    encoder = TokenEncoder(["red", "green", "blue"], length=4, width=8, depth=0)
    levels = (8, Level(8, 1, partial(cross_attention, heads=2)))
    conditions = (unet_keras.timestep(), class_label(3))
    network = build_unet((16, 12, 3), levels, conditions=conditions, context=encoder.context)
    network.set_weights(
        [w + 0.2 * np.random.default_rng(0).standard_normal(w.shape) for w in network.get_weights()],
    )
    return DiffusionModel(network, encoder=encoder, null={"label": 2}, drop=0.1, ema=None, seed=0)


@pytest.mark.parametrize("sampler", [unet_keras.ddim, ddpm, unet_keras.heun])
def test_watching_makes_the_image_of_generate(model, sampler):
    options = {"steps": 4, "sampler": sampler, "seed": 3, "guidance": 2.0}
    conditions = {"prompt": ["red blue"], "label": np.array([1])}
    *_, last = watch(model, conditions, **options)
    np.testing.assert_array_equal(last.image, model.generate(conditions, progress=False, **options)[0])
    found = attention(model, conditions, **options)
    assert last.words == found.words[0] and "red" in last.words
    np.testing.assert_allclose(last.maps, found.maps[0], atol=1e-6)


def test_moments_are_states_and_their_two_parts(model):
    """x = alpha D + sigma eps at each call; the first x is the noise that the image began with."""
    seen = [len(found.moments) for found in watch(model, {}, steps=3, seed=1)]
    assert seen == [1, 2, 3]
    *_, last = watch(model, {}, steps=3, seed=1)
    assert last.words == [] and last.maps is None
    points = model.schedule.points(unet_keras.trailing(len(model.schedule), 3))
    for point, moment in zip(points, last.moments, strict=False):
        np.testing.assert_allclose(point.alpha * moment.clean + point.sigma * moment.noise, moment.x, atol=1e-4)
    assert 0.9 < last.moments[0].x.std() < 1.1


def given(**changes):
    fields = {"prompt": "red", "negative": "", "guidance": 3, "label": None, "steps": 5, "sampler": "ddim", "seed": 1}
    return fields | changes


SAMPLERS = {"ddim": unet_keras.ddim}


def test_what_is_left_empty_is_not_asked_for(model):
    asked = _asked(model, given(), SAMPLERS)
    assert asked["conditions"] == {"prompt": ["red"]} and "negative" not in asked and asked["guidance"] == 3
    assert set(_asked(model, given(label="any"), SAMPLERS)["conditions"]) == {"prompt"}
    asked = _asked(model, given(label=2, negative="blue"), SAMPLERS)
    assert asked["conditions"]["label"] == [2] and asked["negative"] == ["blue"]


def test_a_prompt_that_training_left_out_may_be_left_empty(model):
    *_, last = watch(model, **_asked(model, given(prompt=" ", label=1), SAMPLERS))
    assert len(last.moments) == 5 and last.words == []
    with pytest.warns(UserWarning, match="^guidance: left out"):
        asked = _asked(model, given(prompt=" ", label="any"), SAMPLERS)
    *_, last = watch(model, **asked)
    assert len(last.moments) == 5


def test_empty_fields_are_told(model):
    with pytest.raises(ValueError, match="^seed: "):
        _asked(model, given(seed=None), SAMPLERS)
    always = DiffusionModel(model.network, encoder=model.encoder, null={"label": 2}, drop={"label": 0.1}, ema=None)
    with pytest.raises(ValueError, match="^prompt: "):
        _asked(always, given(prompt="  ", label=1), SAMPLERS)


def test_models_that_the_page_cannot_ask_are_refused():
    with pytest.raises(ValueError, match="2 channels, are no pictures"):
        explore(DiffusionModel(build_unet((8, 8, 2), (4,)), ema=None))
    vector = build_unet((8, 8, 3), (4,), conditions=(unet_keras.timestep(), unet_keras.vector(3, name="style")))
    with pytest.raises(ValueError, match=r"how to ask for the conditions \['style'\]"):
        explore(DiffusionModel(vector, ema=None))
    with pytest.raises(ValueError, match="takes no labels, and 1 names"):
        explore(DiffusionModel(build_unet((8, 8, 3), (4,)), ema=None), ["cat"])
    labelled = build_unet((8, 8, 3), (4,), conditions=(unet_keras.timestep(), unet_keras.class_label(2)))
    with pytest.raises(ValueError, match="knows 2 classes, got 3 names"):
        explore(DiffusionModel(labelled, ema=None), ["cat", "dog", "cow"])


@pytest.mark.parametrize("name", ["steps", "guidance", "seed", "start", "strength", "noise", "sampler", "stepps"])
def test_options_that_the_page_sets_itself_are_refused_at_once(model, name):
    with pytest.raises(ValueError, match=f"^options: {name} is asked"):
        explore(model, **{name: 1})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["explore"], "There is no model"),
        (["explore", "runs/none", "--preset", "emoji-32"], "not both"),
        (["explore", "--preset", "emoji-32", "--port", "70000"], "--port must lie between"),
        (["explore", "nowhere"], "nowhere"),
    ],
)
def test_the_command_tells_what_is_wrong(words, told, capsys):
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_without_gradio_it_says_what_to_install(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'pip install "unet-keras\[explore\]"'):
        explore(model)


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def address(model, tmp_path):
    """Where the command serves the model, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    model.save(tmp_path / "model.keras")
    command = [sys.executable, "-m", "unet_keras.cli", "explore", str(tmp_path / "model.keras"), "--port", port]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split()[0]
        process.kill()


@pytest.fixture
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER[0]
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(BROWSER[1]))
    yield driver
    driver.quit()


def wait(condition, seconds=90):
    """Try until it is true; elements come and go while the page is being built."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(IndexError, WebDriverException):
            if found := condition():
                return found
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.3)


def pixels(element):
    return np.asarray(Image.open(BytesIO(element.screenshot_as_png)).convert("RGB")).astype(int)


@pytest.mark.skipif(not all(BROWSER), reason="needs chromium and chromedriver")
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="what the page shows is tested above on every backend")
def test_the_page_in_a_browser(browser, address):
    """A prompt gives an image; a word shows its map; a step shows what was seen there; what is wrong is told."""
    from selenium.webdriver.common.action_chains import ActionChains

    def find(selector):
        return browser.find_elements("css selector", selector)

    def asked(text):
        """Click, and tell whether the page says so."""
        find("#sample")[0].click()
        time.sleep(2)
        return text in browser.find_element("tag name", "body").text

    def hovered(element):
        ActionChains(browser).move_to_element(element).perform()
        time.sleep(0.7)
        return pixels(find("#words .image-container")[0])

    def maps():
        """Hover beside the words, then each in turn; tell whether the three pictures differ."""
        still, *shown = [hovered(find("#seed")[0]), *map(hovered, find("#words .legend > *"))]
        pairs = [(still, shown[0]), (still, shown[1]), (shown[0], shown[1])]
        return all(np.abs(a - b).mean() > 2 for a, b in pairs)

    def put(field, value):
        """Put a value into a field, as typing does."""
        told = "arguments[0].dispatchEvent(new Event(arguments[2], {bubbles: true}));"
        for event in ("input", "change"):
            script = f"arguments[0].value = arguments[1]; {told}"
            browser.execute_script(script, find(f"#{field} input")[0], value, event)

    def choose(field, name):
        """Choose from a list, as by typing and pressing Enter."""
        from selenium.webdriver.common.keys import Keys

        def chosen():
            box = find(f"#{field} input")[0]
            box.click()
            box.send_keys(Keys.CONTROL, "a")
            box.send_keys(name, Keys.ENTER)
            time.sleep(0.5)
            return box.get_attribute("value") == name

        wait(chosen)

    def another(field, value, put=put):
        """Sample with another value of a field, and wait for another image; they are named after what they show."""
        image = find("#image img")[0].get_attribute("src")
        put(field, value)
        find("#sample")[0].click()
        wait(lambda: find("#image img")[0].get_attribute("src") != image and not find("#strip .generating"))

    def moved():
        """Go to the first network call, and tell whether another state is shown than that of the last."""
        put("at", 1)
        time.sleep(1)
        return find("#look0 img")[0].get_attribute("src") != before

    assert address.startswith("http://127.0.0.1:")
    browser.get(address)
    wait(lambda: find("#seed input"))
    put("seed", -1)
    wait(lambda: asked("seed must be a whole number"))
    assert "Traceback" not in browser.page_source
    put("seed", 0)

    find("#prompt textarea, #prompt input")[0].send_keys("red blue")
    find("#sample")[0].click()
    wait(lambda: find("#strip img") and find("#look2 img") and find("#words .legend > *"))
    assert [word.text for word in find("#words .legend > *")] == ["red", "blue"]
    wait(maps)
    before = find("#look0 img")[0].get_attribute("src")
    wait(moved)
    for field, value in (("steps", 3), ("guidance", 8), ("seed", 5), ("label", 1)):
        another(field, value)
    another("sampler", "ddpm", choose)
    wait(lambda: find("#at input[type=number]")[0].get_attribute("max") == "3")

    find("#prompt textarea, #prompt input")[0].send_keys(" green red blue green")
    wait(lambda: asked("longer than the context's 4 tokens"))
