"""The API, in this process."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time

import httpx
import numpy as np
import pytest
import torch
from made_files import encoded, huge_png
from PIL import Image
from starlette.testclient import TestClient

import tinlab
from tinlab.data.pack import ClassInfo
from tinlab.errors import TinlabError
from tinlab.serve import Limits, form
from tinlab.serve.form import clean_name
from tinlab.serve.limits import MOST_PIXELS
from tinlab.serve.routes import build
from tinlab.serve.samples import Samples, find_samples
from tinlab.serve.service import load

URL = "http://localhost"


@pytest.fixture
def client(make_service, samples):
    """Makes clients of servers with limits of the test's own."""
    opened = []

    def make(limits=None, **options):
        app = build(make_service(limits, **options), samples)
        opened.append(TestClient(app, base_url=URL, raise_server_exceptions=False))
        return opened[-1].__enter__()

    yield make
    for one in opened:
        one.__exit__(None, None, None)


@pytest.fixture(scope="module")
def shared(classifiers, samples):
    from tinlab.serve.service import Service

    with TestClient(build(Service(classifiers), samples), base_url=URL) as one:
        yield one


def parts(*files, name="images"):
    return [(name, (f"{i}.png", data, "image/png")) for i, data in enumerate(files)]


def detail(answer, status):
    assert answer.status_code == status, answer.text
    sentence = answer.json()["detail"]
    assert isinstance(sentence, str)
    assert sentence.endswith(".")
    return sentence


def told(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["images"]


# Answers


def test_it_says_exactly_what_predict_says(shared, classifiers, pictures):
    images = told(shared.post("/classify", files=parts(*pictures), data={"top": 3}))
    decoded = [Image.open(io.BytesIO(picture)) for picture in pictures]
    assert [image["name"] for image in images] == [f"{i}.png" for i in range(10)]
    for number, name in enumerate(classifiers):
        expected = classifiers[name].predict(decoded, top=3)
        for image, guesses in zip(images, expected, strict=True):
            answer = image["models"][number]
            assert answer["model"] == name
            assert answer["error"] is None
            assert answer["guesses"] == [
                {"id": g.id, "words": g.words, "probability": pytest.approx(g.probability, abs=1e-5)}
                for g in guesses
            ]


def test_batch_mates_do_not_matter(shared, pictures):
    together = told(shared.post("/classify", files=parts(*pictures), data={"models": "first"}))
    for picture, mate in zip(pictures, together, strict=True):
        (alone,) = told(shared.post("/classify", files=parts(picture), data={"models": "first"}))
        for one, two in zip(alone["models"][0]["guesses"], mate["models"][0]["guesses"], strict=True):
            assert one["id"] == two["id"]
            assert one["probability"] == pytest.approx(two["probability"], abs=1e-5)


def test_models_and_top_are_chosen(shared, pictures):
    (image,) = told(
        shared.post("/classify", files=parts(pictures[0]), data={"models": ["second"], "top": "1"})
    )
    assert [answer["model"] for answer in image["models"]] == ["second"]
    assert len(image["models"][0]["guesses"]) == 1
    (image,) = told(shared.post("/classify", files=parts(pictures[0]), data={"top": "20"}))
    assert [len(answer["guesses"]) for answer in image["models"]] == [4, 4]
    assert sum(g["probability"] for g in image["models"][0]["guesses"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("top", ["0", "21", "x", "-1", "1.5", "", "²", "1" * 900])
def test_a_bad_top(shared, pictures, top):
    assert "top" in detail(shared.post("/classify", files=parts(pictures[0]), data={"top": top}), 422)


def test_an_explanation_is_the_gradients(shared, classifiers, pictures, shapes_pack):
    one = classifiers["first"]
    answer = shared.post("/explain", files=parts(pictures[2], name="image"), data={"model": "first"})
    assert answer.status_code == 200
    found = answer.json()
    pixels = np.array(shapes_pack.split("val").images[2])
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["image_png"]))))
    assert np.array_equal(seen, pixels)
    (best,) = one.predict(pixels, top=1)[0]
    assert found["target"] == {
        "id": best.id, "words": best.words, "probability": pytest.approx(best.probability, abs=1e-5),
    }  # fmt: skip
    inputs = one.inputs(torch.from_numpy(pixels[None])).requires_grad_()
    one.model(inputs).max().backward()
    expected = inputs.grad.abs().amax(1)[0].numpy()
    one.model.zero_grad()
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["map_png"]))))[..., 3]
    # The strongest pixels of the gradient are those that are drawn strongest.
    order = np.argsort(expected, axis=None)
    assert alpha.ravel()[order[-40:]].min() == 255
    assert np.corrcoef(alpha.ravel(), expected.ravel())[0, 1] > 0.7


def test_another_target_and_a_bare_png(shared, classifiers, pictures):
    body = {"model": "second", "target": classifiers["second"].classes[3].id}
    chosen = shared.post("/explain", files=parts(pictures[0], name="image"), data=body).json()
    assert chosen["target"]["id"] == body["target"]
    bare = shared.post("/explain", files=parts(pictures[0], name="image"), data={**body, "answer": "png"})
    assert bare.headers["content-type"] == "image/png"
    assert bare.content == base64.b64decode(chosen["map_png"])


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({}, "which model"), ({"model": "third"}, "third"), ({"model": "first", "target": "dog"}, "dog"),
        ({"model": "first", "method": "magic"}, "saliency"), ({"model": "first", "answer": "gif"}, "json"),
        ({"model": ["first", "second"]}, "2 times"), ({"model": "first", "top": "5"}, "top"),
    ],
)  # fmt: skip
def test_bad_fields_of_explain(shared, pictures, data, word):
    assert word in detail(shared.post("/explain", files=parts(pictures[0], name="image"), data=data), 422)


def test_models_are_described(shared, runs, classifiers):
    found = shared.get("/models").json()
    assert [model["name"] for model in found["models"]] == ["first", "second"]
    model = found["models"][0]
    assert model["run"] == runs[0].name
    assert model["classes"] == 4
    assert model["parameters"] == sum(p.numel() for p in classifiers["first"].model.parameters())
    assert model["val_top1_percent"] == classifiers["first"].run.result["top1_percent"]
    assert found["methods"][0] == "saliency"
    assert "grad_cam" in found["methods"]
    assert str(runs[0].parent) not in shared.get("/models").text


def test_health(shared):
    found = shared.get("/health").json()
    assert found == {"status": "ok", "tinlab": tinlab.__version__, "waiting": 0, "capacity": 512}


def test_samples_are_drawn_and_shown(shared, shapes_pack):
    val = shapes_pack.split("val")
    found = shared.get("/samples?count=5&seed=3").json()
    assert found == shared.get("/samples?count=5&seed=3").json()
    assert found != shared.get("/samples?count=5&seed=4").json()
    assert (found["split"], found["count"]) == ("val", 40)
    rows = [sample["index"] for sample in found["samples"]]
    assert len(set(rows)) == 5
    for sample in found["samples"]:
        picture = shared.get(f"/samples/{sample['index']}")
        assert picture.headers["content-type"] == "image/png"
        # Another pack has other images under the same addresses.
        assert picture.headers["cache-control"] == "no-store"
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(picture.content))), val.images[sample["index"]]
        )
        assert sample["words"] == shapes_pack.info.classes[val.labels[sample["index"]]].words


@pytest.mark.parametrize("path", ["/samples/40", "/samples/-1", f"/samples/{10**30}"])
def test_a_sample_that_is_not_there(shared, path):
    detail(shared.get(path), 404)


@pytest.mark.parametrize(
    "path",
    [
        "/samples/x",
        "/samples/1.5",
        "/samples?count=0",
        "/samples?count=49",
        "/samples?seed=-1",
        "/samples?seed=x",
    ],
)
def test_bad_numbers_of_samples(shared, path):
    detail(shared.get(path), 422)


@pytest.mark.parametrize(
    "path", ["/nothing", "/samples/../api.py", "/samples/%2e%2e%2fapi.py", "/page.py", "/docs"]
)
def test_there_is_nothing_else(shared, path):
    assert shared.get(path).status_code in (404, 422)


def test_without_a_pack_there_are_no_samples(make_service):
    with TestClient(build(make_service(), Samples(None)), base_url=URL) as one:
        assert one.get("/samples").json() == {"split": "val", "count": 0, "samples": []}
        assert one.get("/samples/0").status_code == 404


def test_samples_come_from_the_runs_pack_or_the_stated_one(classifiers, shapes_pack, tmp_path):
    assert len(find_samples(classifiers.values())) == 40
    assert len(find_samples([], shapes_pack.path)) == 40
    assert len(find_samples([])) == 0
    with pytest.raises(TinlabError, match="nowhere"):
        find_samples([], tmp_path / "nowhere")


def test_the_page_and_its_files_are_safe_and_self_contained(shared):
    for path, kind in (
        ("/", "html"),
        ("/page.css", "css"),
        ("/page.js", "javascript"),
        ("/family.css", "css"),
    ):
        answer = shared.get(path)
        assert kind in answer.headers["content-type"]
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
        assert "http://" not in answer.text
        assert "https://" not in answer.text
        assert "innerHTML" not in answer.text
    page = shared.get("/").text
    assert "<script>" not in page
    assert "style=" not in page
    assert "onclick" not in page


def test_every_route_is_documented(shared):
    described = shared.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/classify", "/explain", "/models", "/health", "/samples", "/samples/{index}",
    }  # fmt: skip
    for path in described["paths"].values():
        for operation in path.values():
            assert operation["summary"].endswith(("?", "images"))
            assert operation["description"]
            assert "422" not in operation["responses"] or "Problem" in str(operation["responses"]["422"])
    classify = described["paths"]["/classify"]["post"]
    assert set(classify["requestBody"]["content"]) == {"multipart/form-data"}
    assert {"400", "403", "408", "413", "415", "421", "422", "500", "503", "504"} <= set(
        classify["responses"]
    )
    assert "/Classified" in str(classify["responses"]["200"])


# Files


def odd_files():
    noise = Image.effect_noise((80, 60), 80)
    colour = Image.merge("RGB", (noise, noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT), noise))
    palette = colour.quantize(16)
    palette.info["transparency"] = 3
    frames = [colour, Image.new("RGB", (80, 60), "red")]
    return {
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "deep.png": encoded(Image.fromarray(np.asarray(noise).astype(np.uint16) * 257), "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=3),
        "alpha.png": encoded(colour.convert("RGBA"), "PNG"),
        "grey.jpg": encoded(noise, "JPEG"),
        "bits.png": encoded(noise.convert("1"), "PNG"),
        "photo.webp": encoded(colour, "WEBP"),
    }


ODD = odd_files()


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_read_as_predict_reads_them(shared, classifiers, tmp_path, name):
    (tmp_path / name).write_bytes(ODD[name])
    (expected,) = classifiers["first"].predict(tmp_path / name)
    (image,) = told(shared.post("/classify", files={"images": (name, ODD[name])}, data={"models": "first"}))
    found = image["models"][0]["guesses"]
    assert [g["id"] for g in found] == [g.id for g in expected]
    assert [g["probability"] for g in found] == pytest.approx([g.probability for g in expected], abs=1e-5)


JPEG = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
BAD = {
    "text": (b"no image at all", 422, "no image"),
    "empty": (b"", 422, "empty"),
    "truncated": (JPEG[: len(JPEG) // 2], 422, "damaged"),
    "half a png": (encoded(Image.effect_noise((64, 64), 50), "PNG")[:900], 422, "damaged"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 422, "no image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "no image"),
    "huge": (huge_png(), 413, "million"),
    "large": (huge_png(5001), 413, "5001 x 5001"),
    "tiff": (encoded(Image.new("RGB", (9, 9)), "TIFF"), 422, "format"),
    "avif": (encoded(Image.new("RGB", (9, 9)), "AVIF"), 422, "format"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named(shared, pictures, name):
    data, status, word = BAD[name]
    files = [*parts(pictures[0]), ("images", (f"../../{name}.jpg", data, "image/jpeg"))]
    sentence = detail(shared.post("/classify", files=files), status)
    assert word in sentence
    assert sentence.startswith(f"{name}.jpg ")
    answer = shared.post("/explain", files={"image": ("x", data)}, data={"model": "first"})
    assert word in detail(answer, status)


def test_names_are_cleaned():
    assert clean_name("/etc/passwd") == "passwd"
    assert clean_name("C:\\pictures\\cat.jpg") == "cat.jpg"
    assert clean_name("a\x1b[31m\nb.jpg") == "a\ufffd[31m\ufffdb.jpg"
    assert clean_name("../") == "image"
    assert len(clean_name("x" * 500)) == 80


# Forms


def test_no_form_no_image_and_misspelt_parts(shared, pictures):
    detail(shared.post("/classify", json={"images": []}), 415)
    detail(shared.post("/classify", content=b"x"), 415)
    detail(shared.post("/classify", data={"top": "3"}), 415)  # url-encoded
    assert "one image" in detail(shared.post("/classify", files={"top": (None, "3")}), 422)
    assert "'images'" in detail(shared.post("/classify", files=parts(pictures[0], name="image")), 422)
    assert "tops" in detail(shared.post("/classify", files=parts(pictures[0]), data={"tops": "3"}), 422)
    assert "third" in detail(
        shared.post("/classify", files=parts(pictures[0]), data={"models": "third"}), 422
    )
    assert "must be a file" in detail(shared.post("/classify", files={"images": (None, "x")}), 422)
    assert shared.get("/classify").status_code == 405


TOP = b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b"nothing of the kind"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n'),
        ("multipart/form-data; boundary=" + "x" * 300, b"--x"),
        ("multipart/form-data; boundary=x", TOP + b"1" * 2000 + b"\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nX: ' + b"y" * 10_000),
        ("multipart/form-data; boundary=x; charset=undefined", TOP + b"1\r\n--x--\r\n"),
    ],
)  # fmt: skip
def test_broken_forms(shared, kind, body):
    detail(shared.post("/classify", content=body, headers={"content-type": kind}), 400)


def test_a_form_that_is_cut_off_is_not_half_read(shared, pictures):
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    answer = shared.post(
        "/classify", content=head + pictures[0], headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code in (400, 422)


def test_too_many_bytes_with_and_without_a_length(client, pictures):
    one = client(Limits(max_bytes=20_000))
    assert one.post("/classify", files=parts(*pictures[:1])).status_code == 200
    assert "20,000" in detail(one.post("/classify", files=parts(b"x" * 30_000)), 413)

    sent = []

    def chunks():
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(30):
            sent.append(1000)
            yield b"x" * 1000

    kind = {"content-type": "multipart/form-data; boundary=x"}
    detail(one.post("/classify", content=chunks(), headers=kind), 413)
    lying = {**kind, "content-length": "100"}
    detail(one.post("/classify", content=chunks(), headers=lying), 413)
    assert one.post("/classify", files=parts(*pictures[:1])).status_code == 200


def test_too_many_files(client, pictures):
    one = client(Limits(max_files=2))
    assert len(told(one.post("/classify", files=parts(*pictures[:2])))) == 2
    assert "2 images" in detail(one.post("/classify", files=parts(*pictures[:3])), 413)
    both = parts(*pictures[:2], name="image")
    assert "1 image " in detail(one.post("/explain", files=both, data={"model": "first"}), 413)


def test_too_much_held_is_busy(client, monkeypatch):
    others = [1]

    def begin(held, limits):
        held.limits, held.bytes = limits, others[0]

    monkeypatch.setattr(form.Held, "__init__", begin)
    one = client(Limits(max_held_bytes=1000))
    answer = one.post("/classify", files=parts(b"x" * 2000))
    detail(answer, 503)
    assert answer.headers["retry-after"] == "1"
    again = one.post("/classify", files=parts(b"tiny"))  # what was held is let go
    detail(again, 422)
    others[0] = 0  # alone it is never too much
    detail(client(Limits(max_held_bytes=1000)).post("/classify", files=parts(b"x" * 2000)), 422)


def test_an_image_sent_as_text_is_told_what_is_wrong(client):
    sent = client().post("/classify", files={"images": (None, "x" * 2000)})
    assert "send images as files" in detail(sent, 400)


def test_pixels_are_limited(client, pictures):
    one = client(Limits(max_pixels=64 * 64 - 1))
    assert "64 x 64" in detail(one.post("/classify", files=parts(pictures[0])), 413)


@pytest.mark.parametrize("field", ["max_bytes", "max_batch", "timeout_seconds", "max_queue", "max_files"])
def test_limits_that_make_no_sense(field):
    with pytest.raises(TinlabError, match=field):
        Limits(**{field: 0})
    with pytest.raises(TinlabError, match=field):
        Limits(**{field: float("nan")})


def test_pillow_decodes_no_more_pixels_than_it_is_said_to():
    from PIL import Image

    assert Limits(max_pixels=Image.MAX_IMAGE_PIXELS).max_pixels == MOST_PIXELS
    with pytest.raises(TinlabError, match="at most 89,478,485"):
        Limits(max_pixels=MOST_PIXELS + 1)


# The queue


class Held:
    """A classifier whose networks wait until they are let, and count."""

    def __init__(self, one, held=True):
        self.one, self.sizes = one, []
        self.begun, self.open = threading.Event(), threading.Event()
        if not held:
            self.open.set()

    def __getattr__(self, name):
        return getattr(self.one, name)

    def logits(self, images):
        if not images.any():
            return self.one.logits(images)  # the first run, at the start
        self.sizes.append(len(images))
        self.begun.set()
        assert self.open.wait(10)
        return self.one.logits(images)


class Failing(Held):
    def logits(self, images):
        if images.any():
            raise RuntimeError("secret")
        return self.one.logits(images)


def together(app, work):
    """Run coroutine function `work` with a client of `app`, which is started and stopped around it."""

    async def run():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url=URL) as one,
        ):
            return await work(one)

    return asyncio.run(run())


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not happen")


def test_requests_share_forward_passes(make_service, samples, classifiers, pictures):
    held = Held(classifiers["first"])
    service = make_service(Limits(max_batch=8), models={"first": held})

    async def work(one):
        posts = [asyncio.create_task(one.post("/classify", files=parts(pictures[0])))]
        await until(held.begun.is_set)
        posts += [asyncio.create_task(one.post("/classify", files=parts(p))) for p in pictures]
        await until(lambda: service.batcher.waiting == 10)
        held.open.set()
        return await asyncio.gather(*posts)

    answers = together(build(service, samples), work)
    assert held.sizes == [1, 8, 2]  # eleven requests, three passes
    expected = classifiers["first"].predict([Image.open(io.BytesIO(p)) for p in pictures], top=1)
    for answer, (best,) in zip(answers[1:], expected, strict=True):
        (image,) = told(answer)
        guess = image["models"][0]["guesses"][0]
        assert guess["id"] == best.id
        assert guess["probability"] == pytest.approx(best.probability, abs=1e-5)


def test_overload_is_refused_at_once(make_service, samples, classifiers, pictures):
    held = Held(classifiers["first"])
    service = make_service(Limits(max_batch=1, max_queue=2, max_files=2), models={"first": held})

    async def work(one):
        running = asyncio.create_task(one.post("/classify", files=parts(pictures[0])))
        await until(held.begun.is_set)
        waiting = asyncio.create_task(one.post("/classify", files=parts(*pictures[:2])))
        await until(lambda: service.batcher.waiting == 2)
        began = time.monotonic()
        refused = await one.post("/classify", files=parts(pictures[0]))
        seconds = time.monotonic() - began
        assert (await one.get("/health")).json()["waiting"] == 2  # the server itself answers on
        held.open.set()
        return refused, seconds, await running, await waiting

    refused, seconds, *fine = together(build(service, samples), work)
    detail(refused, 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert seconds < 5
    assert [answer.status_code for answer in fine] == [200, 200]


def test_an_answer_that_takes_too_long(make_service, samples, classifiers, pictures):
    held = Held(classifiers["first"])
    service = make_service(Limits(timeout_seconds=1.5, max_batch=1), models={"first": held})

    async def work(one):
        running = asyncio.create_task(one.post("/classify", files=parts(*pictures[:3])))
        await until(held.begun.is_set)
        answer = await running
        waiting = service.batcher.waiting
        held.open.set()
        again = await one.post("/classify", files=parts(pictures[0]))
        return answer, waiting, again

    answer, waiting, again = together(build(service, samples), work)
    assert "1.5 seconds" in detail(answer, 504)
    assert waiting == 0  # its other images are dropped from the queue
    assert again.status_code == 200
    assert held.sizes == [1, 1]


def test_a_body_that_comes_too_slowly(make_service, samples):
    async def asgi():
        """By hand, since httpx reads a body to its end before it asks."""
        sent = []
        first = [{"type": "http.request", "body": b"--x\r\n", "more_body": True}]

        async def receive():
            if first:
                return first.pop()
            await asyncio.sleep(5)
            raise AssertionError("too late")

        async def send(message):
            sent.append(message)

        app = build(make_service(Limits(timeout_seconds=0.1)), samples)
        headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
        scope = {
            "type": "http", "method": "POST", "path": "/classify", "raw_path": b"/classify",
            "query_string": b"", "headers": headers, "http_version": "1.1", "scheme": "http",
        }  # fmt: skip
        await app(scope, receive, send)
        return sent

    assert asyncio.run(asgi())[0]["status"] == 408


def test_one_model_fails_and_the_other_answers(make_service, samples, classifiers, pictures, caplog):
    models = {"broken": Failing(classifiers["first"]), "first": classifiers["first"]}
    service = make_service(models=models)

    async def work(one):
        both = await one.post("/classify", files=parts(pictures[0]))
        alone = await one.post("/classify", files=parts(pictures[0]), data={"models": "broken"})
        explained = await one.post(
            "/explain", files=parts(pictures[0], name="image"), data={"model": "broken"}
        )
        after = await one.post("/classify", files=parts(pictures[0]), data={"models": "first"})
        return both, alone, explained, after

    both, alone, explained, after = together(build(service, samples), work)
    broken, first = told(both)[0]["models"]
    assert "log" in broken["error"]
    assert broken["guesses"] == []
    assert first["error"] is None
    assert first == told(after)[0]["models"][0]
    for answer in (alone, explained):
        assert "broken" in detail(answer, 500)
    assert "secret" not in both.text + alone.text + explained.text
    assert "secret" in caplog.text


def test_a_method_that_fails(client, pictures):
    def broken(model, inputs, targets):
        raise RuntimeError("secret")

    one = client(methods={"broken": broken})
    answer = one.post("/explain", files=parts(pictures[0], name="image"), data={"model": "first"})
    assert "secret" not in detail(answer, 500)
    assert one.post("/classify", files=parts(pictures[0])).status_code == 200


def test_a_stopped_service_says_so(client, make_service, samples, pictures):
    service = make_service()
    with TestClient(build(service, samples), base_url=URL) as one:
        service.close()
        answer = one.post("/classify", files=parts(pictures[0]))
        assert "stopping" in detail(answer, 503)
        assert "retry-after" in answer.headers
        assert one.get("/health").status_code == 503


# Who asks


def test_other_names_and_other_pages_are_refused(shared, pictures):
    refused = shared.get("/models", headers={"host": "evil.example"})
    assert "--allow-host" in detail(refused, 421)
    assert refused.headers["x-content-type-options"] == "nosniff"
    files = parts(pictures[0])
    detail(shared.post("/classify", files=files, headers={"origin": "http://evil.example"}), 403)
    detail(shared.post("/classify", files=files, headers={"sec-fetch-site": "cross-site"}), 403)
    assert shared.post("/classify", files=files, headers={"origin": URL}).status_code == 200


# Names of models


def test_runs_are_named_after_their_recipes(runs, tmp_path):
    assert list(load(runs, device="cpu")) == ["first", "second"]
    import shutil

    twin = tmp_path / "twin"
    shutil.copytree(runs[0], twin)
    assert list(load([runs[0], runs[1], twin], device="cpu")) == [runs[0].name, "second", "twin"]
    far = tmp_path / "far" / "twin"
    shutil.copytree(runs[0], far)
    assert list(load([twin, far], device="cpu")) == ["twin (1)", "twin (2)"]
    with pytest.raises(TinlabError, match="twice"):
        load([runs[0], str(runs[0]) + "/."])
    with pytest.raises(TinlabError, match="no run"):
        load([])


def test_words_are_data(make_service, samples, classifiers, pictures):
    """A class may be called anything; JSON carries it, and the page puts it in as text."""
    words = '<img src=x onerror="alert(1)">'
    held = Held(classifiers["first"], held=False)
    held.classes = tuple(ClassInfo(str(n), words) for n in range(4))
    held.guesses = lambda row, top: [tinlab.classifier.Guess("0", words, 0.5)]
    with TestClient(build(make_service(models={"first": held}), samples), base_url=URL) as one:
        answer = one.post("/classify", files=parts(pictures[0]))
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["images"][0]["models"][0]["guesses"][0]["words"] == words
