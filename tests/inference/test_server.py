"""Requests over HTTP: answers are those of `predict`, bad requests get a sentence."""

import base64
import dataclasses
import html
import json
import re
import shutil
import socket
import subprocess
import threading
import types

import pytest
import uvicorn
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from transformer.data.processors import ImageProcessor, TextProcessor
from transformer.data.tokenizers import train
from transformer.inference import server
from transformer.inference.server import application

NAMES = 'chromium', 'chromium-browser', 'google-chrome'
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), '')
TOKENIZER = train(['abcdefgh <>&'], kind='characters', vocab=40)


@dataclasses.dataclass
class Capitals:
  """A task that writes texts in capitals, and says what it was asked together."""

  processor: object = TextProcessor(TOKENIZER, 16)
  decoding: object = dataclasses.field(
    default_factory=lambda: types.SimpleNamespace(batch_size=4, beams=1)
  )
  batches: list = dataclasses.field(default_factory=list)
  entered: threading.Event = dataclasses.field(default_factory=threading.Event)
  free: threading.Event = dataclasses.field(default_factory=threading.Event)

  def answer(self, model, requests):
    self.batches.append(len(requests))
    self.entered.set()
    assert self.free.wait(10)
    if model == 'nan':
      raise FloatingPointError('the model computes NaN')
    return [TOKENIZER.decode(row).upper() for row in requests]

  def example(self, example):
    return example['inputs'], example['targets']

  def attention(self, model, request):
    raise NotImplementedError

  def stream(self, model, line):
    yield from TOKENIZER.decode(self.processor.encode_example(line))


@pytest.fixture
def task():
  task = Capitals()
  task.free.set()
  return task


def client_of(task, model=None):
  return TestClient(application(task, model, 'a <task>'), base_url='http://127.0.0.1')


@pytest.fixture
def client(task):
  with client_of(task) as client:
    yield client


def test_inputs_are_answered_in_order(client):
  found = client.post('/predict', json={'inputs': ['abc', 'hg', 'd', 'e', 'f']})
  assert found.status_code == 200 and found.json() == {'outputs': ['ABC', 'HG', 'D', 'E', 'F']}


def test_requests_that_wait_are_answered_together(task, client):
  task.free.clear()
  found = {}

  def ask(text):
    found[text] = client.post('/predict', json={'inputs': [text]}).json()['outputs']

  threads = [threading.Thread(target=ask, args=(x,)) for x in 'abcdef']
  threads[0].start()
  assert task.entered.wait(10)
  for thread in threads[1:]:
    thread.start()
  later = threading.Timer(0.2, task.free.set)  # by then all of them wait
  later.start()
  for thread in [*threads, later]:
    thread.join()
  assert found == {x: [x.upper()] for x in 'abcdef'}
  assert task.batches[0] == 1 and sum(task.batches) == 6 and max(task.batches) == 4


@pytest.mark.parametrize(
  'status, word, sent',
  [
    (400, 'not JSON', dict(content=b'{')),
    (400, 'not JSON', dict(content=b'[' * 100_000)),
    (400, 'list of strings', dict(content=b'["abc"]')),
    (400, 'list of strings', dict(content=b'{"inputs": "abc"}')),
    (400, 'list of strings', dict(content=b'{"inputs": [1]}')),
    (400, 'give 1 to 256', dict(content=b'{"inputs": []}')),
    (400, 'input 2: the line is empty', dict(content=b'{"inputs": ["a", " "]}')),
    (400, 'input 1: the line has 21 tokens', dict(content=b'{"inputs": ["aaaaaaaaaaaaaaaaaaaa"]}')),
    (400, 'surrogate', dict(content=b'{"inputs": ["\\ud800"]}')),
    (415, 'Content-Type', dict(content=b'{}', headers={'Content-Type': 'text/plain'})),
  ],
)
@pytest.mark.parametrize('path', ['/predict', '/stream'])
def test_a_bad_request_gets_a_sentence(client, path, status, word, sent):
  if path == '/stream':
    word = word.replace('input 2: the line is empty', 'one input a request')
  sent = {'headers': {'Content-Type': 'application/json'}} | sent
  found = client.post(path, **sent)
  assert found.status_code == status and word in found.json()['error'], found.text


@pytest.mark.parametrize('path', ['/predict', '/stream'])
def test_a_request_that_is_too_large_is_not_read(client, path, monkeypatch):
  monkeypatch.setattr(server, 'MAX_BYTES', 30)
  found = client.post(path, json={'inputs': ['a' * 20]})
  assert found.status_code == 413 and 'divide it' in found.json()['error']


def test_other_hosts_paths_and_methods_are_refused(client):
  """A page of another site that resolves to 127.0.0.1 is another host."""
  assert client.get('/', headers={'Host': 'evil.example'}).status_code == 400
  assert client.get('/predict').status_code == 405
  assert client.post('/other').status_code == 404


def test_a_model_that_diverged_is_an_error_of_the_server(task):
  with client_of(task, 'nan') as client:
    found = client.post('/predict', json={'inputs': ['a']})
  assert found.status_code == 500 and 'NaN' in found.json()['error']


def test_a_text_streams_piece_by_piece(client):
  with client.stream('POST', '/stream', json={'inputs': ['abc']}) as found:
    assert [*found.iter_text()] == ['a', 'b', 'c']


def test_files_are_sent_in_base64_and_paths_are_not_opened(task, tmp_path):
  (tmp_path / 'secret.png').write_bytes(b'no image')
  image = ImageProcessor(height=4, width=4, channels=1, patch=2)
  with client_of(dataclasses.replace(task, processor=image)) as client:
    for text in (str(tmp_path / 'secret.png'), base64.b64encode(b'no image').decode(), 'ü'):
      found = client.post('/predict', json={'inputs': [text]})
      assert found.status_code == 400 and 'input' in found.json()['error']
  assert not task.batches


def test_a_port_that_is_taken_is_an_error(task):
  with socket.create_server(('127.0.0.1', 0)) as taken:
    with pytest.raises(OSError, match='in use.* Give another'):
      server.serve(application(task, None, 'x'), taken.getsockname()[1])


# types two inputs into the page, and writes what it shows into it
DRIVER = """<script type="module">
const shown = async text => {
  input.value = text;
  form.requestSubmit();
  while (form.querySelector('button').disabled) await new Promise(done => setTimeout(done, 20));
  return [answer.textContent, answer.className];
};
const found = {title: document.title, first: await shown('abc'), empty: await shown(' ')};
const shows = {id: 'found', textContent: JSON.stringify(found)};
document.body.append(Object.assign(document.createElement('pre'), shows));
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason='there is no Chromium on this machine')
@pytest.mark.parametrize('streams', [True, False])
def test_the_page_shows_answers_and_errors(task, streams, tmp_path):
  task.decoding.beams = 1 if streams else 2  # beams do not stream
  app = application(task, None, 'a <task>')
  page = TestClient(app, base_url='http://127.0.0.1').get('/').text
  app.router.routes.append(Route('/driven', lambda request: HTMLResponse(page + DRIVER)))
  listener = socket.create_server(('127.0.0.1', 0))
  running = uvicorn.Server(uvicorn.Config(app, log_level='warning', ws='none'))
  thread = threading.Thread(target=running.run, kwargs={'sockets': [listener]})
  thread.start()
  try:
    flags = '--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking'
    flags += f' --virtual-time-budget=5000 --user-data-dir={tmp_path}/profile --dump-dom'
    url = f'http://127.0.0.1:{listener.getsockname()[1]}/driven'
    command = [CHROMIUM, *flags.split(), url]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
  finally:
    running.should_exit = True
    thread.join()
  found = json.loads(html.unescape(re.search('<pre id="found">(.*?)</pre>', dom)[1]))
  assert found['title'] == 'a <task>'
  assert found['first'] == (['abcabc', ''] if streams else ['ABC', ''])
  assert 'the line is empty' in found['empty'][0] and found['empty'][1] == 'error'
