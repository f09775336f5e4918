"""What the webhook answers to reviews, good ones and a stranger's: bytes in, bytes out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.kubernetes.injection import patch_of
from fusefs.kubernetes.webhook import NotAReview, answer_review
from tests.kubernetes.pods import DRIVER, IMAGE, RECIPE, container, patch_in, patched, pod, review


def _response(body: Any) -> dict[str, Any]:
    answer = json.loads(answer_review(json.dumps(body).encode(), RECIPE).body)
    assert answer.keys() == {"apiVersion", "kind", "response"}
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: dict[str, Any] = answer["response"]
    return response


def test_a_review_is_answered_with_a_patch() -> None:
    """The answer carries the review's uid, allows, and brings the patch in base64."""
    body = json.dumps(review(pod())).encode()
    answer = answer_review(body, RECIPE)
    assert answer.result == "injected"
    assert json.loads(answer.body)["response"]["uid"] == review(pod())["request"]["uid"]
    result = patched(pod(), patch_in(answer.body))
    assert result["spec"]["initContainers"][0]["image"] == IMAGE
    again = answer_review(json.dumps(review(result)).encode(), RECIPE)
    assert (again.result, patch_in(again.body)) == ("left", [])


def test_a_refusal_is_a_sentence() -> None:
    """`kubectl` shows the message of the status."""
    response = _response(review(pod(containers=[container("fusefs")])))
    assert response["allowed"] is False
    assert response["status"]["code"] == 422
    assert "call it otherwise" in response["status"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        review(pod(), operation="UPDATE"),
        review(pod(), subResource="ephemeralcontainers"),
        review(pod(), resource={"group": "apps", "version": "v1", "resource": "deployments"}),
        review({**pod(), "metadata": {"name": "unlabelled"}}),
    ],
    ids=["update", "subresource", "deployment", "unlabelled"],
)
def test_other_requests_pass(body: Any) -> None:
    """What was not asked for is let through as it is, though a rule were too wide."""
    response = _response(body)
    assert response == {"uid": body["request"]["uid"], "allowed": True}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"9" * 10_000,
        b"null",
        b"[]",
        json.dumps({**review(pod()), "apiVersion": "admission.k8s.io/v1beta1"}).encode(),
        json.dumps({**review(pod()), "request": None}).encode(),
        json.dumps(review(pod(), uid="")).encode(),
        json.dumps(review(pod(), uid=7)).encode(),
        json.dumps(review(None)).encode(),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_review_is_said_so(body: bytes) -> None:
    """There is no uid that could be answered: HTTP 400."""
    with pytest.raises(NotAReview):
        answer_review(body, RECIPE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "args", "csi", "driver", "volumeAttributes", "mode", "ports", "labels"]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)

PLACES: list[tuple[str | int, ...]] = [
    (),
    ("request",),
    ("request", "uid"),
    ("request", "object"),
    ("request", "object", "metadata"),
    ("request", "object", "metadata", "annotations"),
    ("request", "object", "metadata", "annotations", f"{DRIVER}/memory-limit"),
    ("request", "object", "metadata", "annotations", f"{DRIVER}/env-secret"),
    ("request", "object", "spec"),
    ("request", "object", "spec", "containers"),
    ("request", "object", "spec", "containers", 0, "name"),
    ("request", "object", "spec", "containers", 0, "args"),
    ("request", "object", "spec", "containers", 0, "ports"),
    ("request", "object", "spec", "containers", 0, "volumeMounts"),
    ("request", "object", "spec", "initContainers"),
    ("request", "object", "spec", "volumes"),
    ("request", "object", "spec", "volumes", 0, "name"),
    ("request", "object", "spec", "volumes", 0, "csi"),
    ("request", "object", "spec", "volumes", 0, "csi", "volumeAttributes", "sidecarVolume"),
]
"""Where a stranger may put anything into a review that is good otherwise."""


@given(place=st.sampled_from(PLACES), value=json_values)
def test_a_review_with_anything_in_it_has_an_answer(
    place: tuple[str | int, ...], value: Any
) -> None:
    """Either a valid answer, whose patch fits, or NotAReview; nothing else comes out."""
    whole: Any = review(pod(annotations={}))
    if place:
        inner = whole
        for part in place[:-1]:
            inner = inner[part]
        inner[place[-1]] = value
    else:
        whole = value
    try:
        answer = answer_review(json.dumps(whole).encode(), RECIPE)
    except NotAReview:
        return
    response = json.loads(answer.body)["response"]
    assert response["uid"] == whole["request"]["uid"]
    if response["allowed"]:
        result = patched(whole["request"]["object"], patch_in(answer.body))
        assert answer.result == "left" or patch_of(result, RECIPE) == []
    else:
        assert response["status"]["message"].isprintable()


@given(st.binary(max_size=200))
def test_any_bytes_have_an_answer(body: bytes) -> None:
    """Bytes of a stranger are no review, whatever they are."""
    with pytest.raises(NotAReview):
        answer_review(body, RECIPE)
