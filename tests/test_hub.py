"""A hub that does not answer is asked once, and not for long."""

import os
import socket
import threading
import time
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import constants

import aira.hub
from aira.data.sources import read
from aira.errors import AiraError
from aira.hub import reach_hub
from aira.models.loading import load_tokenizer


@pytest.fixture
def server():
    """A port of this machine that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def hub(monkeypatch):
    """Let the hub be at an address, as for a user who has not said that there is none."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(aira.hub, "TIMEOUT", 0.5)
    reach_hub.cache_clear()
    yield lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)
    reach_hub.cache_clear()


UNREACHED = {
    "a port that is silent": None,
    "a port that is closed": "http://127.0.0.1:9",
    "no name": "http://hub.invalid",
}


@pytest.mark.parametrize("address", UNREACHED.values(), ids=UNREACHED)
@pytest.mark.parametrize("key", ["model.path", "data.path", "prompts"])
def test_a_hub_that_does_not_answer(hub, server, capsys, address, key):
    """Catches a wait of minutes, a second question, and a message that leaves one without a network alone."""
    hub(address or "http://{}:{}".format(*server.getsockname()))
    started = time.time()
    for _ in range(2):
        with pytest.raises(AiraError, match=r"nobody/nothing(.|\n)*HF_HUB_OFFLINE=1(.|\n)*local copy"):
            load_tokenizer("nobody/nothing") if key == "model.path" else read("nobody/nothing", key=key)
    assert time.time() - started < 4
    assert capsys.readouterr().err.count("cannot be reached") == 1
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # for processes of the run


def test_a_name_that_is_looked_up_without_end(hub, monkeypatch):
    """Catches a wait that only the request bounds, and not what comes before it."""
    monkeypatch.setattr(aira.hub, "get_session", lambda: SimpleNamespace(head=lambda *_, **__: time.sleep(60)))
    started = time.time()
    reach_hub()
    assert time.time() - started < 10 and constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized", "503 Service Unavailable"])
def test_a_hub_that_answers(hub, server, capsys, status):
    """Catches a hub that is there and is passed over, whatever it says to somebody without a login."""

    def answer():
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    threading.Thread(target=answer, daemon=True).start()
    hub("http://{}:{}".format(*server.getsockname()))
    reach_hub()
    assert not constants.HF_HUB_OFFLINE and not capsys.readouterr().err


def test_no_question_where_the_user_has_said_it(hub, monkeypatch, capsys):
    """Catches a wait for a hub that HF_HUB_OFFLINE rules out."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(aira.hub, "get_session", lambda: pytest.fail("the hub was asked"))
    reach_hub()
    assert not capsys.readouterr().err
