"""What all sections share: how an option is written down, and what may change when a run continues."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    WrapValidator,
)

AUTO = "auto"
Resume = Literal["may_change", "same_data", "fixed"]


def _unless_auto(value: Any, validate: Any) -> Any:
    return value if value == AUTO else validate(value)


# A number, or the word until the start of a run has found the number.
IntOrAuto = Annotated[
    int, Field(ge=1), WrapValidator(_unless_auto), PlainSerializer(lambda value: value),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": AUTO}]}),
]  # fmt: skip


class Section(BaseModel):
    """A part of the configuration: unknown keys and values of another type are mistakes; nothing
    changes later.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def option(
    default: Any, description: str | None = None, *, resume: Resume | None = None, **limits: Any
) -> Any:
    """A field with its default, what it is, and its limits (`ge`, `lt`, ...).

    `resume` says what happens if a run continues with another value: `may_change` allows it,
    `fixed` refuses it, and `same_data` allows it as long as the training text stays the same. A
    section's policy holds for the fields in it that have none of their own; without any it is
    `fixed`.
    """
    return Field(
        default=default, description=description, json_schema_extra=_extra(resume), **limits
    )


def section(kind: type[Section], *, resume: Resume | None = None) -> Any:
    """A field that holds a section."""
    return Field(default_factory=kind, json_schema_extra=_extra(resume))


def _extra(resume: Resume | None) -> Any:
    return None if resume is None else {"resume": resume}


def resume_policy(model: type[BaseModel], key: str) -> Resume:
    """The policy of a setting, given as `train.max_steps`."""
    policy: Resume = "fixed"
    for name in key.split("."):
        field = model.model_fields.get(name)
        if field is None:
            break  # inside a list
        if isinstance(field.json_schema_extra, dict):
            policy = field.json_schema_extra["resume"]  # type: ignore[assignment]
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        model = field.annotation
    return policy
