"""Errors as clients see them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import errors


def test_the_envelope_is_openais() -> None:
    assert errors.ModelNotFound("gpt-9").envelope() == {
        "error": {
            "message": "The model 'gpt-9' does not exist or you do not have access to it.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


@given(st.floats(min_value=0, max_value=1e6))
def test_a_client_that_waits_as_told_has_waited_long_enough(seconds: float) -> None:
    told = int(errors.RateLimited("slow down", retry_after=seconds).headers["Retry-After"])
    assert max(1, seconds) <= told < max(1, seconds) + 1


def test_an_error_without_a_pause_names_none() -> None:
    assert "Retry-After" not in errors.RateLimited("slow down").headers


def test_a_missing_key_says_which_scheme_is_asked_for() -> None:
    assert errors.NotAuthenticated("no key").headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (404, "invalid_request_error", "not_found"),
        (405, "invalid_request_error", "method_not_allowed"),
        (413, "invalid_request_error", "request_too_large"),
        (418, "invalid_request_error", "http_error"),
        (500, "server_error", "internal_error"),
        (502, "server_error", "http_error"),
    ],
)
def test_an_error_of_http_itself_has_a_type_and_a_code(status: int, kind: str, code: str) -> None:
    error = errors.HttpError(status, "text")
    assert (error.status, error.type, error.code) == (status, kind, code)


def subclasses(kind: type[errors.ApiError]) -> list[type[errors.ApiError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in subclasses(child))]


@pytest.mark.parametrize("kind", subclasses(errors.ApiError), ids=lambda kind: kind.__name__)
def test_a_status_and_its_type_agree_on_whose_fault_it_is(kind: type[errors.ApiError]) -> None:
    assert (kind.status >= 500) == (kind.type in {"server_error", "timeout_error"})
