"""A real S3 service that answers 500 and 503 at random, slowly, and sometimes after it has done what was asked."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wsgi import get_input_stream

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

REFUSALS = ("500 Internal Server Error", "503 Slow Down")


class FlakyS3:
    """The service; `trouble` is the share of requests that go wrong, 1 for all of them."""

    def __init__(self, chance: random.Random) -> None:
        self.trouble = 0.0
        self.refused = self.lost = 0
        self.address = ""
        self._chance = chance
        self._service = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()

    def __call__(self, environment: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        with self._lock:
            bad, lost = self._chance.random() < self.trouble, self._chance.random() < 0.3
            delay, refusal = self._chance.uniform(0, 0.2 if self.trouble else 0), self._chance.choice(REFUSALS)
            self.refused += bad
            self.lost += bad and lost
        time.sleep(delay)
        if not bad:
            return self._service(environment, start_response)
        if lost and self.trouble < 1:
            list(self._service(environment, lambda *_: lambda _: None))
        else:
            get_input_stream(environment).read()
        start_response(refusal, [])
        return [b""]


@contextmanager
def flaky_s3(chance: random.Random) -> Iterator[FlakyS3]:
    service = FlakyS3(chance)
    server = make_server("127.0.0.1", 0, service, threaded=True)
    service.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
