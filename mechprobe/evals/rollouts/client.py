"""HTTP requests to an inference server, repeated after faults that pass."""

import email.utils
import json
import os
import random
import time
from asyncio import sleep
from collections.abc import Callable
from typing import Any, TypeVar

import httpx2

from mechprobe.errors import ConfigError, EndpointError, first_line
from mechprobe.evals.config import EndpointConfig

PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Status codes of faults that may pass."""
FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED = 1.0, 60.0, 3600.0
"""Seconds before the first repetition, at most between two, and at most as ``Retry-After``."""
LOOK_WAITS = (0.1, 1.0)
"""Seconds before the repetitions of a request that only looks."""
Parsed = TypeVar("Parsed")


class BadAnswerError(ValueError):
    """An answer that is cut, is not JSON, or lacks what it should hold."""


def key_of(settings: EndpointConfig) -> str:
    """The key from the environment; empty if the settings name no variable.

    Raises:
        ConfigError: The variable is not set, or its value cannot be sent.
    """
    name = settings.api_key_env
    key = os.environ.get(name, "").strip() if name else ""
    if name and not key:
        raise ConfigError(
            f"The environment variable {name} is not set; export it with the key of the server, or empty evaluate.endpoint.api_key_env."
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"The key in the environment variable {name} has characters that no key has; set it again.")
    return key


class Client:
    """A connection to the server, with the key and without redirects, so that no other host receives the key.

    Proxies of the environment are used for https only: under http they would read the key.
    """

    def __init__(self, settings: EndpointConfig) -> None:
        self.settings = settings
        self._key = key = key_of(settings)
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(settings.timeout, connect=min(settings.timeout, 30.0)),
            limits=httpx2.Limits(max_connections=settings.concurrency),
            follow_redirects=False,
            trust_env=settings.base_url.startswith("https://"),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def look(self, url: str) -> tuple[Any, str]:
        """Value and ``Server`` header of an address that a server may have; ``(None, ...)`` where it has no JSON there.

        Raises:
            EndpointError: The server cannot be reached, or refuses the key.
        """
        response = await self._get(url)
        self._refuse(response, key_only=True)
        try:
            value = response.json() if response.status_code == 200 else None
        except ValueError:
            value = None
        return value, response.headers.get("server", "")

    async def _get(self, url: str) -> httpx2.Response:
        for wait in (*LOOK_WAITS, None):
            try:
                return await self._http.get(url)
            except httpx2.TransportError as error:
                if wait is None:
                    raise EndpointError(
                        f"The server at {self.settings.base_url} cannot be reached ({first_line(error)}); start it, or correct "
                        "evaluate.endpoint.base_url."
                    ) from None
                await sleep(wait)  # a server may drop a connection after an error
        raise AssertionError("the last attempt returns or raises")

    async def ask(
        self, body: dict[str, Any], parse: Callable[[Any], Parsed], *, name: str, place: str = "completions"
    ) -> Parsed:
        """Post a request and parse its answer; faults that pass are repeated.

        Args:
            body: The request.
            parse: Takes the JSON value of the answer; a `BadAnswerError` counts as a fault that may pass.
            name: What is asked, for messages, and the seed of the random part of the waits.
            place: Where to post it, below the address of the server.

        Raises:
            EndpointError: The server refuses the request, or every repetition failed.
        """
        chance = random.Random(name)
        fault = ""
        for attempt in range(self.settings.max_retries + 1):
            asked_wait = 0.0
            try:
                response = await self._http.post(f"{self.settings.base_url}/{place}", json=body)
                self._refuse(response)
                if response.status_code == 200:
                    return parse(_json(response))
                fault, asked_wait = self._described(response), _retry_after(response)
            except (httpx2.TransportError, httpx2.DecodingError, BadAnswerError) as error:
                fault = str(error) if isinstance(error, BadAnswerError) else first_line(error)
            if attempt < self.settings.max_retries:
                wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * chance.uniform(0.5, 1.0)
                await sleep(max(wait, asked_wait))
        raise EndpointError(
            f"The server at {self.settings.base_url} failed {self.settings.max_retries + 1} times to answer {name} ({fault}); "
            "the answers so far are kept, so run the same command again once the server works."
        )

    def _refuse(self, response: httpx2.Response, *, key_only: bool = False) -> None:
        """Raise `EndpointError` for a status that no repetition changes."""
        status, url, name = response.status_code, self.settings.base_url, self.settings.api_key_env
        if status in (401, 403):
            mend = (
                f"check the key in {name}"
                if name
                else "name the variable that holds the key in evaluate.endpoint.api_key_env"
            )
            raise EndpointError(f"The server at {url} refuses the request ({status}); {mend}.")
        if key_only or status == 200 or status in PASSING:
            return
        if response.is_redirect:
            target = response.headers.get("location", "")[:100]
            raise EndpointError(
                f"The server at {url} redirects to {target}; give the final address as evaluate.endpoint.base_url."
            )
        mend = "correct the request's settings"
        if status == 404:
            mend = "check the end of evaluate.endpoint.base_url (usually /v1) and the names in evaluate.endpoint.models"
        raise RefusedError(f"The server at {url} refuses the request ({self._described(response)}); {mend}.", status)

    def _described(self, response: httpx2.Response) -> str:
        """Status and the first words of the server's explanation, without the key, which some servers repeat."""
        text = " ".join(response.text.split())
        text = (text.replace(self._key, "***") if self._key else text)[:160]
        return f"{response.status_code}: {text}" if text else str(response.status_code)


class RefusedError(EndpointError):
    """A request that the server does not accept, with its ``status``."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _json(response: httpx2.Response) -> Any:
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        raise BadAnswerError("its answer is not JSON") from None


def _retry_after(response: httpx2.Response) -> float:
    """Seconds that the server asks to wait: a number, or a date; 0 if it asks for nothing readable."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
    if seconds > LONGEST_ASKED:
        raise EndpointError(f"The server asks to wait {seconds:.0f} seconds; run the same command again after that.")
    return max(0.0, seconds) if seconds == seconds else 0.0  # NaN
