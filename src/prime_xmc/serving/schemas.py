"""The shapes of requests and answers, from which OpenAPI's description is made."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from prime_xmc.serving.limits import Limits


class PredictRequest(BaseModel):
    """Texts to rank labels for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: list[str] = Field(description="Texts, each of which gets its own labels.", examples=[["a text"]])
    top_k: int = Field(5, ge=1, description="Labels per text; all of them where the model has fewer.")
    min_score: float | None = Field(
        None, allow_inf_nan=False, description="Labels with a lower score are left out; null: none are."
    )
    scorer: str | None = Field(
        None, description="How to score: one of the scorers that /model lists; null: the server's own."
    )
    allow: list[str | int] | None = Field(
        None, description="Labels that may be an answer, by uid, or by row counted from 0; null: all."
    )
    exclude: list[str | int] | None = Field(None, description="Labels that may not be an answer, likewise.")
    calibrate: bool = Field(False, description="Whether each label gets the probability that it is right.")
    explain: bool = Field(False, description="Whether each label gets an explanation of its score.")


def predict_request(limits: Limits) -> type[PredictRequest]:
    """Return the shape of a request within some bounds."""
    base = PredictRequest.model_fields
    text = Annotated[str, StringConstraints(max_length=limits.characters)]
    texts = Field(
        min_length=1, max_length=limits.texts, description=base["texts"].description, examples=base["texts"].examples
    )
    top_k = Field(5, ge=1, le=limits.top_k, description=base["top_k"].description)
    return create_model(
        "PredictRequest",
        __base__=PredictRequest,
        __doc__=PredictRequest.__doc__,
        texts=(list[text], texts),
        top_k=(int, top_k),
    )


class LabelFound(BaseModel):
    """A label."""

    id: int = Field(description="Row of the label in the model, from 0.")
    uid: str = Field(description="Identifier in the data set.")
    text: str = Field(description="Title.")


class QueryLikeIt(BaseModel):
    """A training query that carries the label."""

    row: int | None = Field(None, description="Row in the raw file of training queries; absent: not known.")
    similarity: float = Field(description="Cosine of its embedding and that of the text.")
    text: str | None = Field(None, description="Beginning of its text; absent: the model does not hold it.")


class Why(BaseModel):
    """Why a label has its score."""

    scorers: dict[str, float] = Field(description="Share of each scorer; they add up to the score.")
    sources: dict[str, float] = Field(
        description="Share of the label's text, centroid and free vector in that of the prototypes."
    )
    queries: list[QueryLikeIt] = Field(description="Nearest training queries that carry the label.")


class LabelScored(BaseModel):
    """A label with its score."""

    uid: str = Field(description="Identifier in the data set.")
    text: str = Field(description="Title.")
    score: float = Field(description="Score, higher is better; its scale depends on the scorer.")
    probability: float | None = Field(None, description="Probability that it is right; absent unless asked for.")
    why: Why | None = Field(None, description="Explanation of the score; absent unless asked for.")


class QueryAnswered(BaseModel):
    """A text and its labels."""

    query: str = Field(description="The text.")
    labels: list[LabelScored] = Field(description="Its labels, best first.")


class Predictions(BaseModel):
    """Labels of texts."""

    version: str = Field(description="Version of the model that found them.")
    scorer: str = Field(description="Scorer that found them.")
    predictions: list[QueryAnswered] = Field(description="An entry for each text, in their order.")


class LabelsFound(BaseModel):
    """Labels that a search has found."""

    version: str = Field(description="Version of the model.")
    labels: list[LabelFound] = Field(description="The labels, in the order of the data set.")
    more: bool = Field(description="Whether there are further ones.")


class Reloaded(BaseModel):
    """What became of loading the model folder again."""

    result: str = Field(description="exchanged, unchanged or failed.")
    version: str = Field(description="Version of the model that is served now.")
    time: str = Field(description="Time, as in ISO 8601.")
    reason: str | None = Field(description="Problem of the folder, where it failed.")


class ModelDescription(BaseModel):
    """What is served, and what the server accepts."""

    title: str = Field(description="Heading of the page.")
    version: str = Field(description="Version of the model: a fingerprint of its files.")
    loaded: str = Field(description="Time at which it was loaded, as in ISO 8601.")
    num_labels: int = Field(description="Number of labels.")
    scorer: str = Field(description="Scorer of requests that name none.")
    scorers: list[str] = Field(description="Scorers that requests may name.")
    explains: bool = Field(description="Whether requests may ask for explanations.")
    calibrated: list[str] = Field(description="Scorers for which requests may ask for probabilities.")
    limits: dict[str, float] = Field(description="Bounds on requests.")
    last_reload: Reloaded | None = Field(description="What became of loading the folder again; null: it was not tried.")


class Health(BaseModel):
    """State of the server."""

    live: bool = Field(description="Whether it can answer at all.")
    ready: bool = Field(description="Whether there is room for another text.")
    version: str = Field(description="Version of the model.")
    waiting: int = Field(description="Texts that wait.")
    last_reload: str | None = Field(
        description="What became of loading the folder again: exchanged, unchanged, failed."
    )


class ProblemReply(BaseModel):
    """Why a request is not answered."""

    status: int = Field(description="HTTP status.")
    reason: str = Field(description="Name of the reason, for programs.")
    detail: str = Field(description="The reason, for people.")
