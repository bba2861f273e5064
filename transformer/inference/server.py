"""Predictions over HTTP: a web page, JSON, and streamed text.

  GET  /         a page with a form
  POST /predict  {"inputs": [...]} returns {"outputs": [...]}, or {"error": "..."} with status 4xx
  POST /stream   {"inputs": ["..."]} returns the continuation of one text, piece by piece (language
                 models)

Requests that arrive while others are computed are answered in one batch. Batches have the shapes of
`predict`, so that few programs are compiled. Images and sounds are sent as the content of their
files in base64; a path is never opened.
"""

import asyncio
import base64
import binascii
import contextlib
import functools
import importlib.resources
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from html import escape
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from transformer.data.processors import TextProcessor
from transformer.inference.predict import Model, Predictor, predict_each

MAX_BYTES = 1 << 24  # of a request
MAX_INPUTS = 256  # of a request


class RefusedRequest(Exception):
  """A request that is answered by an HTTP error.

  Args:
    status: HTTP status, 4xx.
    reason: a message for the client.
  """

  def __init__(self, status: int, reason: str):
    super().__init__(reason)
    self.status = status


def application(task: Predictor, model: Model, name: str) -> Starlette:
  """Return the ASGI application that answers requests of a task.

  Args:
    task, model: as in `predict`.
    name: name of the experiment, which the page shows.
  """
  of_texts = isinstance(task.processor, TextProcessor)
  streams = hasattr(task, 'stream') and task.decoding.beams == 1
  answers = functools.partial(predict_each, task, model)
  ask, answer_in_batches = _batched(answers, task.decoding.batch_size)

  async def page(request: Request) -> Response:
    template = importlib.resources.files(__package__).joinpath('server.html').read_text('utf-8')
    kind = 'text' if of_texts else 'file'
    filled = template.replace('{{name}}', escape(name)).replace('{{kind}}', kind)
    return HTMLResponse(filled.replace('{{streams}}', str(streams).lower()))

  async def answer(request: Request) -> Response:
    inputs = await _inputs(request, of_texts)
    outputs = await asyncio.gather(*map(ask, inputs))
    for number, output in enumerate(outputs, start=1):
      if isinstance(output, Exception):
        raise RefusedRequest(400, f'input {number}: {output}')
    return JSONResponse({'outputs': [_as_json(output) for output in outputs]})

  async def stream(request: Request) -> Response:
    (line, *others) = await _inputs(request, of_texts)
    if others or not streams:
      reason = 'one input a request is streamed' if streams else 'this model does not stream'
      raise RefusedRequest(400, f'{reason}: send it to /predict')
    try:
      pieces: Iterator[str] = task.stream(model, line)  # type: ignore[attr-defined]
      first = await asyncio.to_thread(next, pieces, '')
    except ValueError as error:
      raise RefusedRequest(400, f'input 1: {error}') from error
    return StreamingResponse(_chain(first, pieces), media_type='text/plain; charset=utf-8')

  @contextlib.asynccontextmanager
  async def lifespan(app: Starlette) -> AsyncIterator[None]:
    worker = asyncio.create_task(answer_in_batches())
    yield
    worker.cancel()

  return Starlette(
    routes=[
      Route('/', page),
      Route('/predict', answer, methods=['POST']),
      Route('/stream', stream, methods=['POST']),
    ],
    exception_handlers={RefusedRequest: _refusal, FloatingPointError: _failure},
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=['127.0.0.1', 'localhost'])],
    lifespan=lifespan,
  )


def _batched(answer: Callable[[list], list], size: int) -> tuple[Callable, Callable]:
  """Return (ask, work): coroutine functions that request one answer, and that compute answers.

  `work` runs forever: it takes the lines that have arrived, at most `size`, and computes their
  answers in a thread. If `answer` raises, `ask` raises the same for each of these lines.
  """
  waiting: asyncio.Queue[tuple[Any, asyncio.Future]] = asyncio.Queue()

  async def ask(line: Any) -> Any:
    future = asyncio.get_running_loop().create_future()
    waiting.put_nowait((line, future))
    return await future

  async def work():
    while True:
      batch = [await waiting.get()]
      while len(batch) < size and not waiting.empty():
        batch.append(waiting.get_nowait())
      lines, futures = zip(*batch, strict=True)
      try:
        outputs = await asyncio.to_thread(answer, list(lines))
      except Exception as error:
        for future in futures:
          if not future.done():
            future.set_exception(error)
        continue
      for future, output in zip(futures, outputs, strict=True):
        if not future.done():  # the client may have disconnected
          future.set_result(output)

  return ask, work


async def _inputs(request: Request, of_texts: bool) -> list[str | bytes]:
  """Return the inputs of a request: texts, or the contents of files."""
  if request.headers.get('content-type', '').partition(';')[0].strip() != 'application/json':
    raise RefusedRequest(415, 'send JSON, with the header Content-Type: application/json')
  body = bytearray()
  async for part in request.stream():
    body += part
    if len(body) > MAX_BYTES:
      raise RefusedRequest(413, f'the request is larger than {MAX_BYTES:,} bytes: divide it')
  try:
    content = json.loads(body)
  except (ValueError, RecursionError) as error:
    raise RefusedRequest(400, f'the body is not JSON: {error}') from error
  inputs = content.get('inputs') if isinstance(content, dict) else None
  if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
    raise RefusedRequest(400, 'give {"inputs": [...]} with a list of strings')
  if not 1 <= len(inputs) <= MAX_INPUTS:
    raise RefusedRequest(400, f'there are {len(inputs)} inputs: give 1 to {MAX_INPUTS}')
  if of_texts:
    return inputs
  try:
    return [base64.b64decode(text, validate=True) for text in inputs]
  except (binascii.Error, ValueError) as error:
    raise RefusedRequest(400, f'an input is not a file in base64: {error}') from error


def _as_json(output: Any) -> Any:
  """Return an answer as a JSON value; a sound in base64."""
  return {'wav': base64.b64encode(output).decode()} if isinstance(output, bytes) else output


def _chain(first: str, pieces: Iterator[str]) -> Iterator[str]:
  yield first
  yield from pieces


def _refusal(request: Request, error: Exception) -> Response:
  status = error.status if isinstance(error, RefusedRequest) else 400
  return JSONResponse({'error': str(error)}, status_code=status)


def _failure(request: Request, error: Exception) -> Response:
  return JSONResponse({'error': str(error)}, status_code=500)


def serve(app: Starlette, port: int) -> None:
  """Serve an application on 127.0.0.1 until a signal ends the process.

  Args:
    app: from `application`.
    port: TCP port; 0 for any free one.

  Raises:
    OSError: the port is in use.
  """
  try:
    listener = socket.create_server(('127.0.0.1', port))
  except OSError as error:
    raise OSError(f'--port={port}: {error.strerror}. Give another, or 0 for a free one') from error
  with listener:
    url = f'http://127.0.0.1:{listener.getsockname()[1]}'
    logging.getLogger(__name__).info('open %s in a browser; Ctrl-C ends', url)
    server = uvicorn.Server(uvicorn.Config(app, log_level='warning'))
    server.run(sockets=[listener])
