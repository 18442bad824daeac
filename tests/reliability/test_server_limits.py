"""What the trials of the server try, in a second each: strange bytes, too much, too slow, too many."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import select
import socket
import threading
import time

import crowds
import pytest
import served
import server as trial
import strangers
from starlette.testclient import TestClient
from strangers import ask, classify, encoded, made_input, multipart, request

import tinlab
from tinlab.errors import TinlabError
from tinlab.serve import Limits
from tinlab.serve import server as serving
from tinlab.serve.batcher import Job
from tinlab.serve.form import Form, Upload
from tinlab.serve.linger import LINGER_SECONDS
from tinlab.serve.routes import build
from tinlab.serve.samples import find_samples
from tinlab.serve.service import Service
from tinlab.training import loop


@pytest.fixture(scope="module")
def one(tiny_recipe, shapes_pack, tmp_path_factory):
    """A tiny network, trained for as long as it takes to be one."""
    run = loop.train(tiny_recipe, shapes_pack, tmp_path_factory.mktemp("runs"), device="cpu").path
    return tinlab.load(run, device="cpu")


@pytest.fixture
def started(one):
    """Starts servers of `one`, with limits of the test's own."""
    with contextlib.ExitStack() as stack:

        def start(limits=None, model=one):
            service = start.service = Service({"one": model}, limits)
            return stack.enter_context(served.in_thread(service, find_samples([one])))

        yield start


class Held:
    """A classifier that answers when it is let."""

    def __init__(self, one):
        self.one, self.open, self.taken = one, threading.Event(), 0

    def __getattr__(self, name):
        return getattr(self.one, name)

    def logits(self, images):
        if images.any():
            self.taken += len(images)
            assert self.open.wait(20)
        return self.one.logits(images)


# Any bytes


def test_any_bytes_are_answered_or_refused(started):
    tally = trial.fuzz(started(Limits(max_bytes=1 << 20)), range(180), at_once=32, linger=0.15)
    assert tally.wrong == {}
    assert tally.tried == 180
    # The inputs reach every layer: HTTP, the guard, the form, the image, and the network.
    assert {200, 400, 421, 422} <= set(tally.statuses)


def test_a_failure_is_noticed():
    """The trial's own judgement: each kind of bad answer is one."""
    head = b"HTTP/1.1 %s X\r\nX-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n"

    def wrong(status, body, more=b""):
        return strangers.faults(strangers.parsed(head % status + more + b"\r\n" + body, 0.1), b"GET /")

    assert wrong(b"422", b'{"detail": "No."}') == []
    assert wrong(b"500", b'{"detail": "No."}') == ["status 500"]
    assert wrong(b"422", b'{"detail": "Traceback (most recent call last)"}') == ["it tells of the machine"]
    assert wrong(b"404", b"Not Found") == ["404 without a sentence"]
    assert wrong(b"503", b'{"detail": "No."}') == ["503 without Retry-After"]
    assert wrong(b"200", b"{}", b"Access-Control-Allow-Origin: *\r\n") == ["open to other sites"]
    assert wrong(b"200", b"{}", b"X-Evil: 1\r\n") == ["a header that the client put in"]
    assert "no x-frame-options" in strangers.faults(strangers.parsed(b"HTTP/1.1 200 OK\r\n\r\n", 0), b"")
    assert made_input(7) == made_input(7)
    assert strangers.is_whole(classify(b"x"))
    assert not strangers.is_whole(classify(b"x")[:-1])


JUNK = b"zq7 " * 100_000
CHUNKED = {"Transfer-Encoding": "chunked", "Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("POST", "/classify", JUNK), 400),  # a broken form
        (request("POST", "/classify", JUNK, {"Origin": "http://evil.example"}), 403),
        (request("POST", "/nothing", JUNK), 404),
        (request("POST", "/classify", 3 * JUNK), 413),
        (request("POST", "/classify", JUNK, {"Content-Type": "application/json"}), 415),
        (request("POST", "/classify", b"", CHUNKED) + b"no length" + JUNK, 400),  # broken HTTP
    ],
    ids=["form", "origin", "path", "size", "kind", "chunks"],
)
def test_an_answer_before_the_end_of_the_body_arrives(started, data, status):
    """A client that is refused while it sends meets no closed connection, and reads the whole answer."""
    place = started(Limits(max_bytes=1 << 20))
    with socket.create_connection(place, timeout=10) as client:
        client.sendall(data[: len(data) // 2])
        assert select.select([client], [], [], 10)[0], "nothing is answered"
        for at in range(len(data) // 2, len(data), 1 << 14):
            client.sendall(data[at : at + (1 << 14)])
            time.sleep(0.005)
        got = b"".join(iter(lambda: client.recv(1 << 16), b""))
    answer = strangers.parsed(got, 0)
    assert answer.status == status
    assert strangers.faults(answer, data) == []


def test_who_never_sends_the_rest_is_not_waited_for(started):
    """The whole answer is there, and the connection ends soon after LINGER_SECONDS."""
    began = time.monotonic()
    answer = asyncio.run(ask(started(), request("POST", "/nothing", JUNK)[:200_000]))
    assert (answer.status, strangers.faults(answer, b"")) == (404, [])
    assert time.monotonic() - began < LINGER_SECONDS + 5


def test_no_request_reaches_the_disk(started, tmp_path):
    place = started(Limits(max_bytes=1 << 20))
    trial.fuzz(place, range(-30, 0), linger=0.1)  # what is imported late, is imported
    with OPENED.during():
        tally = trial.fuzz(place, range(240, 360), linger=0.1)
        assert asyncio.run(ask(place, request(target="/page.js"))).status == 200
    assert tally.wrong == {}
    assert OPENED.strange() == []
    with OPENED.during():  # it does hear
        (tmp_path / "a").write_text("x")
        (tmp_path / "a").read_text()
    assert OPENED.strange() == [f"read {tmp_path / 'a'}", f"wrote {tmp_path / 'a'}"]


OPENED = trial.Opened()


def test_a_head_is_short_even_where_it_comes_at_once(started):
    place = started()
    long = request(headers={"X-Long": "y" * 60_000})
    answer = asyncio.run(ask(place, long))
    assert answer.status in (400, 431)
    target = asyncio.run(ask(place, request(target="/samples?x=" + "y" * 30_000)))
    assert target.status in (400, 431)
    assert asyncio.run(ask(place, request(headers={"X-Long": "y" * 12_000}))).status == 200


def test_bytes_after_an_unfinished_answer_end_it_quietly(started, one, caplog):
    """A body that stops being HTTP while its request is answered: no failure of the server's own."""
    place = started()
    bad = request("POST", "/classify", b"", {
        "Transfer-Encoding": "chunked", "Content-Type": "multipart/form-data; boundary=x",
    }) + b"4\r\n--x\r\nno chunk at all\r\n"  # fmt: skip
    answer = asyncio.run(ask(place, bad))
    assert answer.status == 400
    assert strangers.faults(answer, bad) == []
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("number", [4327, 8113])
def test_inputs_that_once_failed(started, number):
    """Ranges of the page's files, which were answered in another form than errors are."""
    data = made_input(number)
    assert b"Range: " in data
    answer = asyncio.run(ask(started(), data))
    assert answer.status == 200
    assert strangers.faults(answer, data) == []


def test_bytes_that_are_no_body_of_a_head_request(started):
    """The answer to HEAD has no body, and the refusal of what followed it once failed for that."""
    data = request("HEAD", "/health", b"", {"Transfer-Encoding": "chunked"}) + b"--x\r\n"
    with trial.Heard() as heard:
        answer = asyncio.run(ask(started(), data))
    assert answer.status in (200, 400, 405)
    assert heard.said == []


def test_answers_are_those_that_are_documented(one):
    """The statuses of each route, by its own description."""
    picture = encoded(0, "PNG")
    tried = [
        ("get", "/models", {}), ("get", "/health", {}), ("get", "/samples", {}),
        ("get", "/samples?count=0", {}), ("get", "/samples/1", {}), ("get", "/samples/999", {}),
        ("get", "/samples/x", {}), ("get", "/models", {"headers": {"host": "evil.example"}}),
        ("get", "/health", {"headers": {"host": "a/b"}}),
        ("get", "/samples", {"headers": {"x-long": "y" * 20_000}}),
        ("post", "/classify", {"content": b"x"}), ("post", "/classify", {"files": {"images": picture}}),
        ("post", "/classify", {"files": {"images": b"x"}}),
        ("post", "/classify", {"files": {"images": b"x" * 400_000}}),
        ("post", "/explain", {"files": {"image": picture}}),
        ("post", "/explain", {"files": {"image": picture}, "headers": {"origin": "null"}}),
        ("post", "/explain", {"files": {"image": picture}, "data": {"answer": "gif"}}),
    ]  # fmt: skip
    app = build(Service({"one": one}, Limits(max_bytes=300_000)), find_samples([one]))
    seen = set()
    with TestClient(app, base_url="http://localhost") as client:
        paths = client.get("/openapi.json").json()["paths"]
        for method, target, given in tried:
            answer = client.request(method, target, **given)
            path = target.partition("?")[0]
            documented = paths.get(path) or paths["/samples/{index}"]
            content = documented[method]["responses"][str(answer.status_code)].get("content", {})
            assert answer.headers["content-type"].partition(";")[0] in content, (target, answer.status_code)
            seen.add(answer.status_code)
    assert seen == {200, 400, 403, 404, 413, 415, 421, 422, 431}


def test_only_own_names_and_own_pages():
    tally = trial.hosts(range(2000))
    assert tally.wrong == {}
    assert {200, 400, 403, 421} <= set(tally.statuses)


# Too much


def test_overload_is_refused_and_passes(started, one):
    """While a network stands still: what fits into the queue waits, all else is refused at once."""
    held = Held(one)
    place = started(Limits(max_batch=1, max_queue=4, max_files=4), held)

    async def work():
        taken = [asyncio.create_task(ask(place, classify(encoded(0, "PNG"), encoded(1, "PNG"))))]
        refused = []
        while len(refused) < 20:
            before = len(taken)
            taken.append(asyncio.create_task(ask(place, classify(encoded(2, "PNG")))))
            with contextlib.suppress(TimeoutError):
                answer = await asyncio.wait_for(asyncio.shield(taken[-1]), 0.1 if not refused else 5)
                refused.append(answer)
                taken = taken[:before]
        assert (await ask(place, request())).status == 200
        held.open.set()
        return refused, await asyncio.gather(*taken)

    refused, taken = asyncio.run(work())
    assert {answer.status for answer in refused} == {503}
    assert all(answer.header("retry-after") == "1" for answer in refused)
    assert max(answer.seconds for answer in refused[1:]) < 2
    assert {answer.status for answer in taken} == {200}
    assert asyncio.run(ask(place, classify(encoded(0, "PNG")))).status == 200


def test_real_overload_passes(started):
    tally = crowds.overload(
        started(Limits(max_batch=2, max_queue=24, max_files=16)), seconds=0.5, clients=8, images=16
    )
    assert tally.wrong == {}
    assert tally.statuses[503] > 0


def test_images_that_are_decoded_count_as_waiting(started, monkeypatch):
    """A decoder that stands still fills the queue as a network does, and nothing more is decoded."""
    from tinlab.serve import images

    opened, begun, decode = threading.Event(), [], images.pixels

    def slow(*given):
        begun.append(1)
        assert opened.wait(20)
        return decode(*given)

    monkeypatch.setattr(images, "pixels", slow)
    place = started(Limits(max_queue=4, max_files=4))

    async def work():
        first = asyncio.create_task(ask(place, classify(*[encoded(0, "PNG")] * 4)))
        while not begun:
            await asyncio.sleep(0.01)
        second = await ask(place, classify(encoded(0, "PNG")))
        opened.set()
        return second, await first

    second, first = asyncio.run(work())
    assert (second.status, first.status) == (503, 200)
    assert len(begun) == 4


def test_pixels_of_a_request_are_limited_together(one):
    app = build(
        Service({"one": one}, Limits(max_pixels=5000, max_request_pixels=10_000)), find_samples([one])
    )
    with TestClient(app, base_url="http://localhost") as client:

        def post(count):
            return client.post(
                "/classify", files=[("images", ("a.png", encoded(0, "PNG"))) for _ in range(count)]
            )

        assert post(2).status_code == 200  # 64 x 64 each
        answer = post(3)
        assert answer.status_code == 413
        assert answer.json()["detail"].endswith("0.01 million pixels together.")


# Too slow, too many


def test_slow_clients_are_cut_off(started, monkeypatch):
    monkeypatch.setattr(serving, "HEADER_SECONDS", 2.0)
    monkeypatch.setattr(serving, "READ_SECONDS", 2.0)
    tally = crowds.slow(started(Limits(timeout_seconds=2.0)), clients=1, within=25)
    assert tally.wrong == {}
    assert tally.tried == 3


def test_who_waits_while_the_server_stands_still_is_not_cut_off(started, monkeypatch):
    """On a machine that is paused for longer than the limit, nobody had the time to ask."""
    monkeypatch.setattr(serving, "HEADER_SECONDS", 1.0)
    came, awake = [], threading.Event()

    class Seen(serving.Protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            came.append(self.loop)

    monkeypatch.setattr(serving, "Protocol", Seen)
    place = started()

    def pause():
        time.sleep(1.5)
        awake.set()

    with socket.create_connection(place, timeout=10) as client:
        while not came:
            time.sleep(0.01)
        came[0].call_soon_threadsafe(pause)
        assert awake.wait(10)
        time.sleep(0.3)  # the check that was due has been made
        client.sendall(request())
        assert client.recv(15) == b"HTTP/1.1 200 OK"


def test_silent_connections_make_room(started, monkeypatch):
    """Five times as many as there may be."""
    monkeypatch.setattr(serving, "YOUNG_SECONDS", 0)
    tally = crowds.connections(started(Limits(max_connections=40)), count=200, asked=5)
    assert tally.wrong == {}
    kept = int(tally.note.split()[0])
    assert 30 <= kept <= 40


def test_those_that_have_just_come_are_not_cut(started, monkeypatch):
    """A burst of more than there may be: each is answered, if only that the server is busy; then few stay."""
    monkeypatch.setattr(serving, "YOUNG_SECONDS", 2.0)
    place = started(Limits(max_connections=10))

    async def work():
        burst = [await asyncio.open_connection(*place) for _ in range(40)]
        for _, writer in burst:
            writer.write(request(close=False))
        heads = [await reader.readexactly(15) for reader, _ in burst]
        ends = [asyncio.create_task(reader.read()) for reader, _ in burst]  # to the end of the connection
        await asyncio.sleep(2.1)
        for _ in range(20):  # at the first, but where this machine stood still meanwhile
            assert (await ask(place, request())).status == 200
            await asyncio.wait(ends, timeout=0.5)
            kept = sum(not end.done() for end in ends)
            if kept <= 10:
                break
        return heads, kept

    heads, kept = asyncio.run(work())
    assert len(heads) == 40
    assert set(heads) <= {b"HTTP/1.1 200 OK", b"HTTP/1.1 503 Se"}
    assert kept <= 10


def test_connections_that_are_all_at_work_are_not_cut(started, one):
    """Nobody is thrown out for a newcomer who is being answered; the newcomer is told to come again."""
    held = Held(one)
    place = started(Limits(max_connections=3), held)

    async def work():
        busy = [asyncio.create_task(ask(place, classify(encoded(0, "PNG")))) for _ in range(3)]
        while held.taken + started.service.batcher.waiting < 3:  # until then the server waits for them
            await asyncio.sleep(0.02)
        refused = await ask(place, request())
        held.open.set()
        return refused, await asyncio.gather(*busy)

    refused, busy = asyncio.run(work())
    assert refused.status == 503
    assert strangers.faults(refused, b"GET") == []
    assert refused.header("connection") == "close"
    assert [answer.status for answer in busy] == [200, 200, 200]


def test_files_that_may_not_be_opened_are_said():
    with pytest.raises(TinlabError, match=r"max_connections is 999999999, .* ulimit -n"):
        serving.allow_files(999_999_999 + serving.SPARE_FILES)


# Memory


def test_nothing_of_a_request_is_kept(one):
    """After sound, broken and abandoned requests there is no body, form, image or piece of work left."""
    service = Service({"one": one}, Limits(max_bytes=1 << 20))
    with served.in_thread(service, find_samples([one])) as place:
        for number in range(30):
            data, expected = crowds.steady(number)
            answer = asyncio.run(ask(place, data, linger=5.0 if None not in expected else 0.05))
            assert answer.status in expected, number
        asyncio.run(ask(place, request("POST", "/explain", multipart(("image", "a", encoded(0, "PNG"))))))
        deadline = time.monotonic() + 5
        while True:
            gc.collect()
            left = [thing for thing in gc.get_objects() if type(thing) in (Upload, Form, Job)]
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        assert left == []
        assert service.batcher.waiting == 0
