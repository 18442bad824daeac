"""The endpoints: what a request asks for, and what it is answered."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import HTTPException, Query, Request, Response
from starlette.requests import ClientDisconnect

from tinlab import __version__
from tinlab.classifier import Classifier
from tinlab.data.decode import ImageError, TooManyPixelsError
from tinlab.data.given import guesses
from tinlab.serve import images, schemas
from tinlab.serve.batcher import BusyError, ClosedError, Job
from tinlab.serve.form import Form, Held, Upload, busy, clean_name, read_form
from tinlab.serve.samples import SPLIT, Samples
from tinlab.serve.service import Explanation, Service

MAX_TOP = 20
DECODERS = 4
"""Threads that decode images, while the networks run in another."""


class Api:
    """The endpoints, with what they share."""

    def __init__(self, service: Service, samples: Samples) -> None:
        self.service = service
        self.samples = samples
        self.held = Held(service.limits)
        self.decoding = 0
        """Places in the queue that are kept for images that are being decoded."""
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="tinlab-decode")
        self.infos = [_info(name, one) for name, one in service.models.items()]

    async def classify(self, request: Request) -> Any:
        """Classify one image or many, with one model or several.

        A model that fails has an `error` in place of guesses; only where all fail is the answer 500.
        """
        async with read_form(request, self.held) as form:
            _refuse_unknown(form, files=("images",), fields=("models", "top"))
            uploads = form.files.get("images", [])
            if not uploads:
                raise HTTPException(422, "Send at least one image, as a file in the part 'images'.")
            names = self._models(form.fields.get("models", []))
            top = _top(form.fields.get("top", []))
            with self._places(len(uploads) * len(names)):
                decoded = await self._decode(uploads, names)
        # The files are let go: only the small squares wait.
        work = [
            (self.service.classify_lane(name), sizes[self._size(name)]) for sizes in decoded for name in names
        ]
        answers = await self._answers(request, work)
        if all(isinstance(answer, Exception) for answer in answers):
            raise HTTPException(500, f"{' and '.join(names)} failed; the server's log says why.")
        told = iter(answers)
        return schemas.Classified(
            images=[
                schemas.ImageAnswer(
                    name=upload.name, models=[self._answer(name, next(told), top) for name in names]
                )
                for upload in uploads
            ]
        )

    async def explain(self, request: Request) -> Any:
        """Show where a model looked in one image, for one class."""
        async with read_form(request, self.held, max_files=1) as form:
            _refuse_unknown(form, files=("image",), fields=("model", "target", "method", "answer"))
            uploads = form.files.get("image", [])
            if not uploads:
                raise HTTPException(422, "Send one image, as a file in the part 'image'.")
            stated = _single(form, "model")
            if stated is None and len(self.service.models) > 1:
                raise HTTPException(422, f"Say which model: {', '.join(self.service.models)}.")
            (name,) = self._models([stated] if stated else list(self.service.models))
            method = _chosen("method", _single(form, "method"), list(self.service.methods))
            kind = _chosen("answer", _single(form, "answer"), ["json", "png"])
            one = self.service.models[name]
            target = _target(one, _single(form, "target"))
            with self._places(1):
                (decoded,) = await self._decode(uploads, [name])
        image = decoded[self._size(name)]
        lane = self.service.explain_lane(name, method)
        (answer,) = await self._answers(request, [(lane, (image, target))])
        if isinstance(answer, Exception):
            raise HTTPException(500, f"{name} failed; the server's log says why.")
        assert isinstance(answer, Explanation)
        map_png = images.png(images.heat(answer.map))
        if kind == "png":
            return Response(map_png, media_type="image/png")
        info = one.classes[answer.target]
        return schemas.Explained(
            model=name,
            method=method,
            target=schemas.Guess(id=info.id, words=info.words, probability=answer.probability),
            image_png=base64.b64encode(images.png(image)).decode(),
            map_png=base64.b64encode(map_png).decode(),
        )

    async def models(self) -> Any:
        """The models that are served, the methods that explain them, and what a request may hold."""
        limits = self.service.limits
        return schemas.Models(
            models=self.infos,
            methods=list(self.service.methods),
            limits=schemas.RequestLimits(
                max_bytes=limits.max_bytes, max_files=limits.max_files, max_pixels=limits.max_pixels
            ),
        )

    async def health(self, response: Response) -> Any:
        """Whether the server takes work, and how much waits. 503 where it does not."""
        batcher = self.service.batcher
        if not batcher.alive:
            response.status_code = 503
        return schemas.Health(
            status="ok" if batcher.alive else "stopping",
            tinlab=__version__,
            waiting=batcher.waiting,
            capacity=batcher.capacity,
        )

    async def list_samples(
        self,
        count: Annotated[int, Query(ge=1, le=48)] = 12,
        seed: Annotated[int, Query(ge=0, lt=2**31, description="Another seed, another draw.")] = 0,
    ) -> Any:
        """Draw some validation images to try. Empty where the server has no pack."""
        drawn = []
        for row in self.samples.drawn(count, seed):
            label = self.samples.label(row)
            drawn.append(
                schemas.Sample(
                    index=row, id=label.id if label else None, words=label.words if label else None
                )
            )
        return schemas.Samples(split=SPLIT, count=len(self.samples), samples=drawn)

    async def sample(self, index: int) -> Any:
        """One validation image, as PNG: exactly the pixels of the pack."""
        try:
            picture = images.png(self.samples.image(index))
        except IndexError:
            raise HTTPException(404, f"There is no validation image {index}.") from None
        return Response(picture, media_type="image/png")

    def _size(self, model: str) -> int:
        return self.service.models[model].run.preprocessing.image_size

    def _models(self, stated: Sequence[str]) -> list[str]:
        every = self.service.models
        for name in stated:
            if name not in every:
                raise HTTPException(
                    422, f"There is no model '{clean_name(name)}'; there are {', '.join(every)}."
                )
        return list(dict.fromkeys(stated)) or list(every)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        seconds = self.service.limits.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise HTTPException(504, f"The answer took more than {seconds:g} seconds.") from None

    @contextmanager
    def _places(self, count: int) -> Iterator[None]:
        """Keep `count` places in the queue, so that nothing is decoded that would then find none.

        Raises HTTPException where there are not as many.
        """
        batcher = self.service.batcher
        if batcher.waiting + self.decoding + count > batcher.capacity:
            raise busy()
        self.decoding += count
        try:
            yield
        finally:
            self.decoding -= count

    async def _decode(self, uploads: Sequence[Upload], models: Iterable[str]) -> list[dict[int, np.ndarray]]:
        """Each upload in the sizes of the `models`. Raises HTTPException, which names the first bad file."""
        loop = asyncio.get_running_loop()
        sizes = {self._size(name) for name in models}
        limits = self.service.limits
        async with self._in_time():
            if len(uploads) * limits.max_pixels > limits.max_request_pixels and len(uploads) > 1:
                files = [upload.data for upload in uploads]
                total = await loop.run_in_executor(self.decoders, images.header_pixels, files)
                if total > limits.max_request_pixels:
                    millions = limits.max_request_pixels / 1e6
                    raise HTTPException(
                        413, f"The images of a request may have at most {millions:g} million pixels together."
                    )
            decoding = [
                loop.run_in_executor(
                    self.decoders, partial(images.pixels, upload.data, sizes, limits.max_pixels)
                )
                for upload in uploads
            ]
            decoded = await _all(decoding)
        for upload, found in zip(uploads, decoded, strict=True):
            if isinstance(found, ImageError):
                status = 413 if isinstance(found, TooManyPixelsError) else 422
                raise HTTPException(status, f"{upload.name} cannot be used as an image: {found}.")
            if isinstance(found, Exception):
                raise found
        return decoded

    async def _answers(self, request: Request, work: Iterable[tuple[Hashable, Any]]) -> list[Any]:
        """The answer, or the exception, to each piece of `work`.

        Work is dropped from the queue where the time is up or the client is gone. Raises HTTPException.
        """
        try:
            jobs = self.service.batcher.submit(work)
        except BusyError:
            raise busy() from None
        except ClosedError:
            raise _stopping() from None
        gone = asyncio.create_task(_disconnected(request))
        waiting = asyncio.ensure_future(_all([asyncio.wrap_future(job.answer) for job in jobs]))
        try:
            async with self._in_time():
                await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientDisconnect
            answers = waiting.result()
        finally:
            gone.cancel()
            self._drop(jobs, waiting)
        if any(isinstance(answer, ClosedError) for answer in answers):
            raise _stopping()
        return answers

    def _drop(self, jobs: Sequence[Job], waiting: asyncio.Future[list[Any]]) -> None:
        if not waiting.done():
            self.service.batcher.discard(jobs)
            waiting.cancel()

    def _answer(self, name: str, answer: Any, top: int) -> schemas.ModelAnswer:
        if isinstance(answer, Exception):
            return schemas.ModelAnswer(
                model=name, guesses=[], error=f"{name} failed; the server's log says why."
            )
        (found,) = guesses(answer[None], self.service.models[name].classes, top)
        return schemas.ModelAnswer(
            model=name, guesses=[schemas.Guess(**asdict(guess)) for guess in found], error=None
        )


def _info(name: str, one: Classifier) -> schemas.ModelInfo:
    run = one.run
    result = run.result or {}
    top1 = result.get("top1_percent") if result.get("split") == SPLIT else None
    return schemas.ModelInfo(
        name=name,
        recipe=run.recipe.name,
        summary=run.recipe.summary,
        run=run.path.resolve().name,
        network=run.recipe.model.name,
        parameters=sum(p.numel() for p in one.model.parameters()),
        classes=len(one.classes),
        image_size=run.preprocessing.image_size,
        val_top1_percent=top1 if isinstance(top1, int | float) else None,
    )


async def _all(futures: Iterable[Any]) -> list[Any]:
    """The results or exceptions of `futures`, all waited for."""
    return await asyncio.gather(*futures, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refuse_unknown(form: Form, *, files: tuple[str, ...], fields: tuple[str, ...]) -> None:
    """A misspelt part would otherwise be left out in silence."""
    for name in form.files:
        if name not in files:
            raise HTTPException(422, f"Send files in the part '{files[0]}', not '{clean_name(name)}'.")
    for name in form.fields:
        if name in files:
            raise HTTPException(422, f"The part '{name}' must be a file, with a file name.")
        if name not in fields:
            raise HTTPException(
                422, f"There is no field '{clean_name(name)}'; there are {', '.join(fields)}."
            )


def _single(form: Form, name: str) -> str | None:
    """The value of field `name`; None where it is left out or empty."""
    values = form.fields.get(name, [])
    if len(values) > 1:
        raise HTTPException(422, f"The field '{name}' is given {len(values)} times.")
    return values[0] or None if values else None


def _top(values: Sequence[str]) -> int:
    if not values:
        return 5
    if len(values) == 1 and values[0].isascii() and values[0].isdecimal() and 1 <= int(values[0]) <= MAX_TOP:
        return int(values[0])
    raise HTTPException(422, f"The field 'top' must be one whole number from 1 to {MAX_TOP}.")


def _chosen(field: str, value: str | None, choices: Sequence[str]) -> str:
    if value is None:
        return choices[0]
    if value not in choices:
        raise HTTPException(
            422, f"There is no {field} '{clean_name(value)}'; there are {', '.join(choices)}."
        )
    return value


def _target(one: Classifier, id: str | None) -> int | None:
    if id is None:
        return None
    for number, info in enumerate(one.classes):
        if info.id == id:
            return number
    raise HTTPException(422, f"This model knows no class of the id '{clean_name(id)}'.")


def _stopping() -> HTTPException:
    return HTTPException(503, "The server is stopping.", headers={"Retry-After": "10"})
