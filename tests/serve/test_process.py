"""The server as a process of its own: sockets, slow clients, signals, and a browser."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from browser import browser, open_page
from made_files import encoded
from PIL import Image
from served import in_thread

import tinlab
from tinlab.data.pack import ClassInfo
from tinlab.errors import TinlabError
from tinlab.explain.attribution import saliency
from tinlab.serve import server

KIND = {"Content-Type": "multipart/form-data; boundary=x"}


def body(*pictures, **fields):
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + picture + b"\r\n"
        for picture in pictures
    ]
    parts += [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    return b"".join([*parts, b"--x--\r\n"])


class Started:
    """`tinlab serve` on a free port."""

    def __init__(self, *words):
        environment = {**os.environ, "TINLAB_DATA": "", "TINLAB_CACHE": "/nonexistent/cache"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tinlab", "serve", *map(str, words), "--port", "0", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        text = ""
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            text += line
        self.address = json.loads(text)["address"]
        self.host, _, port = self.address.removeprefix("http://").rpartition(":")
        self.port = int(port)

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=10)

    def socket(self):
        return socket.create_connection((self.host, self.port), timeout=10)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def started(runs):
    one = Started(*runs, "--max-bytes", 3_000_000)
    yield one
    code, errors = one.stop()
    assert code == 143
    assert "Traceback" not in errors


def post(connection, path, data, **headers):
    connection.request("POST", path, data, {**KIND, **headers})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_it_answers_as_predict_does(started, runs, pictures, tmp_path):
    (tmp_path / "a.png").write_bytes(pictures[1])
    status, found = post(started.connect(), "/classify", body(pictures[1], models="first"))
    assert status == 200
    (expected,) = tinlab.load(runs[0], device="cpu").predict(tmp_path / "a.png")
    guesses = found["images"][0]["models"][0]["guesses"]
    assert [(g["id"], g["probability"]) for g in guesses] == [
        (g.id, pytest.approx(g.probability, abs=1e-5)) for g in expected
    ]


def test_a_body_that_never_ends_is_cut(started):
    """Without a length, and with 100 MB on offer: it is refused, and the connection closed."""
    with started.socket() as one:
        one.sendall(
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        sent, chunk = 0, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        with contextlib.suppress(OSError):
            head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
            one.sendall(f"{len(head):x}\r\n".encode() + head + b"\r\n")
            while sent < 10_000_000:
                one.sendall(chunk)
                sent += 0x10000
        answer = b""
        with contextlib.suppress(OSError):
            while piece := one.recv(65536):
                answer += piece
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


def test_a_length_that_is_too_large_is_refused_before_the_body(started):
    with started.socket() as one:
        one.sendall(
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        assert one.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_more_than_the_stated_length_is_not_read_as_body(started):
    """What follows is another request's beginning, and a broken one."""
    with started.socket() as one:
        one.sendall(
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x-" + b"x" * 100_000
        )
        answer = b""
        with contextlib.suppress(OSError):
            while piece := one.recv(65536):
                answer += piece
    assert answer.startswith(b"HTTP/1.1 422 ")  # four bytes hold no image
    assert b"HTTP/1.1 400 " in answer
    assert b"HTTP/1.1 200" not in answer


def test_a_head_that_is_too_long_or_has_two_hosts(started):
    for head in (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 40_000,
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
    ):
        with started.socket() as one:
            one.sendall(head)
            assert one.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_another_sites_page_is_refused(started, pictures):
    connection = started.connect()
    connection.request("GET", "/models", headers={"Host": "evil.example"})
    assert connection.getresponse().status == 421
    assert post(started.connect(), "/classify", body(pictures[0]), Origin="http://evil.example")[0] == 403


def test_many_clients_at_once(started, pictures):
    """Thirty requests side by side all get what they would get alone."""
    alone = [post(started.connect(), "/classify", body(picture)) for picture in pictures]
    found = {}

    def ask(number):
        found[number] = post(started.connect(), "/classify", body(pictures[number % 10]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for number, (status, answer) in found.items():
        assert status == 200
        for mine, theirs in zip(
            answer["images"][0]["models"], alone[number % 10][1]["images"][0]["models"], strict=True
        ):
            assert [g["id"] for g in mine["guesses"]] == [g["id"] for g in theirs["guesses"]]
            assert [g["probability"] for g in mine["guesses"]] == pytest.approx(
                [g["probability"] for g in theirs["guesses"]], abs=1e-5
            )
    assert len(found) == 30


def test_nothing_is_written_to_the_disk(started, tmp_path):
    """A file of 2 MB goes through memory alone: Linux tells what the process has open and has written."""
    if not Path("/proc/self/io").is_file():
        pytest.skip("needs /proc")
    noise = encoded(Image.effect_noise((1200, 1200), 90), "PNG")
    assert len(noise) > 1 << 20

    def written():
        text = Path(f"/proc/{started.process.pid}/io").read_text()
        return int(dict(line.split(": ") for line in text.splitlines())["write_bytes"])

    before = written()
    assert post(started.connect(), "/classify", body(noise))[0] == 200
    assert written() - before < 1 << 20


def test_a_client_that_goes_is_no_error(started, pictures):
    data = body(*pictures * 5)
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    for sent in (len(data) // 2, len(data)):
        with started.socket() as one:
            one.sendall(head.encode() + data[:sent])
    assert (
        post(started.connect(), "/classify", body(pictures[0]))[0] == 200
    )  # and see `started`: no traceback


def test_a_taken_port_is_said(started):
    with pytest.raises(TinlabError, match=r"already in use; choose another --port"):
        server.bound("127.0.0.1", started.port)


def test_what_is_in_flight_is_finished_and_sigint_gives_130(runs, pictures):
    """A batch that waits ten minutes for more images is run at once when the server is told to stop."""
    one = Started(runs[0], "--max-wait-ms", 600_000, "--host", "0.0.0.0")
    assert one.address.startswith("http://127.0.0.1:")
    answer = []
    thread = threading.Thread(
        target=lambda: answer.append(post(one.connect(), "/classify", body(pictures[0])))
    )
    thread.start()
    for _ in range(500):
        connection = one.connect()
        connection.request("GET", "/health")
        if json.loads(connection.getresponse().read())["waiting"] == 1:
            break
        time.sleep(0.01)
    began = time.monotonic()
    code, errors = one.stop(signal.SIGINT)
    assert time.monotonic() - began < 100  # a busy machine needs its time to end a process
    assert code == 130
    assert errors.startswith("WARNING: --host 0.0.0.0")  # anybody can reach it, and that is said
    assert "Traceback" not in errors
    thread.join(100)
    assert answer[0][0] == 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere"), (["RUN", "RUN"], "twice"), (["RUN", "--max-bytes", "0"], "max_bytes"),
        (["RUN", "--host", "no.such.invalid"], "no.such.invalid"), (["RUN", "--data", "nowhere"], "nowhere"),
        (["RUN", "--timeout", "-1"], "timeout"), (["RUN", "--port", "70000"], "--port"), ([], "RUN"),
        (["RUN", "--device", "abacus"], "abacus"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(runs, words, said):
    from typer.testing import CliRunner

    from tinlab.cli import app

    words = [str(runs[0]) if word == "RUN" else word for word in words]
    port = [] if "--port" in words else ["--port", "0"]
    done = CliRunner().invoke(app, ["serve", *words, *port])
    assert done.exit_code != 0
    if isinstance(done.exception, TinlabError):
        assert said in str(done.exception)
    else:
        assert done.exit_code == 2
        assert said in done.output


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "python_multipart"])
def test_the_extra_that_is_missing_is_named(monkeypatch, missing):
    from tinlab.serve import serve

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(TinlabError, match=r"pip install 'tinlab\[serve\]'"):
        serve(["anything"])


def test_slow_heads_are_cut_off(make_service, samples, monkeypatch, pictures):
    """Drop by drop, or with nothing at all: no client holds a connection without a request."""
    monkeypatch.setattr(server, "HEADER_SECONDS", 1.0)
    with in_thread(make_service(), samples) as place:
        with (
            socket.create_connection(place, timeout=5) as silent,
            socket.create_connection(place, timeout=5) as slow,
        ):
            began = time.monotonic()
            with contextlib.suppress(OSError):
                for letter in b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 40:
                    slow.sendall(bytes([letter]))
                    time.sleep(0.02)
            with contextlib.suppress(OSError):
                assert slow.recv(100) == b""
            assert silent.recv(100) == b""
            assert time.monotonic() - began < 8
        # One that asks is answered, also after it has waited between two requests.
        connection = http.client.HTTPConnection(*place, timeout=5)
        for _ in range(3):
            connection.request("GET", "/health")
            assert json.loads(connection.getresponse().read())["status"] == "ok"
            time.sleep(0.15)


# The page, in a browser


@pytest.fixture(scope="module")
def page(started):
    """A page of headless Chromium, with what it asked for and complained of."""
    with browser() as chromium:
        opened = open_page(chromium, started.address)
        opened.wait_for_selector("#samples img")
        yield opened


def shown(page):
    """The words and percents of every card, once its maps are there."""
    page.wait_for_function(
        "n => document.querySelectorAll('#results:not(.busy) .map:not([hidden])').length === n",
        arg=page.locator("#choices input:checked").count(),
    )
    return [
        [
            (row.locator(".words").inner_text(), row.locator(".percent").inner_text())
            for row in card.locator(".guess").all()
        ]
        for card in page.locator(".model").all()
    ]


def drop(page, name, data, kind="image/png"):
    import base64

    page.evaluate(
        """([name, data, kind]) => {
          const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          const carried = new DataTransfer();
          carried.items.add(new File([bytes], name, {type: kind}));
          const options = {dataTransfer: carried, bubbles: true, cancelable: true};
          document.dispatchEvent(new DragEvent('drop', options));
        }""",
        [name, base64.b64encode(data).decode(), kind],
    )


def test_a_sample_is_classified_and_explained(page, started):
    assert page.locator("#samples button").count() == 12
    button = page.locator("#samples button").nth(3)
    button.focus()
    page.keyboard.press("Enter")
    cards = shown(page)
    assert [len(card) for card in cards] == [4, 4]  # this data set has four classes
    for card in cards:
        percents = [float(percent.strip("<% ")) for _, percent in card]
        assert percents == sorted(percents, reverse=True)
        assert sum(percents) == pytest.approx(100, abs=0.3)
    assert button.get_attribute("aria-pressed") == "true"
    widths = page.evaluate(
        "[...document.querySelectorAll('.bar span')].map((bar) => parseFloat(bar.style.width))"
    )
    assert sum(widths) == pytest.approx(200, abs=1)
    for picture in page.locator("img:visible").all():
        assert picture.get_attribute("alt")
        assert picture.evaluate("(image) => image.naturalWidth") == 64


def test_saliency_is_toggled_and_faded(page):
    def opacity():
        return page.locator(".map").first.evaluate("(map) => map.style.opacity")

    shown(page)
    assert opacity() == "0.8"
    page.locator("#saliency").focus()
    page.keyboard.press("Space")
    assert opacity() == "0"
    assert page.locator(".mapped").count() == 0
    page.keyboard.press("Space")
    page.locator("#strength").focus()
    page.keyboard.press("ArrowLeft")
    assert opacity() == "0.79"


def test_another_class_is_explained(page):
    shown(page)
    before = page.locator(".map").first.get_attribute("src")
    page.locator(".model").first.locator(".guess").nth(2).click()
    page.wait_for_function("(src) => document.querySelector('.map').src !== src", arg=before)
    pressed = page.locator(".model").first.locator("[aria-pressed=true] .words").inner_text()
    shown_class = pressed.split(",")[0].split(" ✓")[0]
    assert page.locator(".map").first.get_attribute("alt") == f"Saliency map for {shown_class}, by saliency"


def test_a_file_is_dropped_chosen_and_its_name_is_text(page, pictures, tmp_path):
    name = "<img src=x onerror=alert(1)>.png"
    drop(page, name, pictures[0])
    page.wait_for_function("() => document.getElementById('name').textContent.includes('onerror')")
    shown(page)
    assert page.locator("#name").inner_text() == name
    (tmp_path / "chosen.png").write_bytes(pictures[5])
    page.locator("#file").set_input_files(str(tmp_path / "chosen.png"))
    page.wait_for_function("() => document.getElementById('name').textContent === 'chosen.png'")
    shown(page)
    assert page.locator("#samples [aria-pressed=true]").count() == 0


def test_models_are_chosen(page):
    shown(page)
    page.locator("#choices label").nth(1).click()
    page.wait_for_function("() => document.querySelectorAll('.model').length === 1")
    assert len(shown(page)) == 1
    page.locator("#choices label").nth(1).click()
    page.wait_for_function("() => document.querySelectorAll('.model').length === 2")


def test_it_fits_a_phone(page):
    shown(page)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.set_viewport_size({"width": 1280, "height": 900})


def test_words_of_strangers_stay_words_and_methods_are_chosen(
    page, make_service, samples, classifiers, pictures
):
    """Class words, a model's name and its summary hold HTML; a second method turns the map around."""
    hostile = '<img src=x onerror="alert(1)"></script><b>'
    first = classifiers["first"]
    one = tinlab.Classifier(first.run, first.model, first.device, first.step)
    one.classes = tuple(ClassInfo(str(n), f"{hostile} {n}") for n in range(4))
    methods = {"saliency": saliency, "turned_round": lambda *given: saliency(*given).flip(-1)}
    with in_thread(make_service(models={hostile: one}, methods=methods), samples) as (host, port):
        opened = page.context.new_page()
        opened.set_default_timeout(10_000)
        dialogs = []
        opened.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        opened.on("console", lambda message: dialogs.append(message.text))
        opened.goto(f"http://{host}:{port}")
        opened.wait_for_selector("#samples img")
        drop(opened, f"{hostile}.png", pictures[0])
        opened.wait_for_selector(".map:not([hidden])")
        assert {words.split(" ✓")[0][:-2] for words in opened.locator(".words").all_inner_texts()} == {
            hostile
        }
        assert opened.locator(".model h3").inner_text() == hostile
        assert opened.locator("main b, main script, main img[src=x]").count() == 0
        before = opened.locator(".map").get_attribute("src")
        opened.locator("#method").select_option("turned_round")
        opened.wait_for_function("(src) => document.querySelector('.map').src !== src", arg=before)
        assert opened.locator(".map").get_attribute("alt").endswith("turned_round")
        assert dialogs == []
        opened.close()


def test_it_asked_nobody_else_and_nothing_complained(page, started):
    assert page.complaints == []
    assert all(url.startswith((started.address, "blob:", "data:")) for url in page.asked)
    assert any("/classify" in url for url in page.asked)


def test_a_bad_file_is_said_in_a_sentence(page):
    """The last of the browser's: Chromium itself notes the 422 in its console."""
    drop(page, "notes.txt", b"no picture", "text/plain")
    page.wait_for_selector("#alert:visible")
    assert "notes.txt cannot be used as an image" in page.locator("#alert").inner_text()
    assert page.locator("#results").inner_text().startswith("The five likeliest classes appear here")
    assert page.locator(".model").count() == 0
