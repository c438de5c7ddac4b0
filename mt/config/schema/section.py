"""How sections and options are declared, and which options may change when a run is resumed."""

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


# A number, or `auto`, which is replaced by a number when the run starts.
IntOrAuto = Annotated[
    int,
    Field(ge=1),
    WrapValidator(_unless_auto),
    PlainSerializer(lambda value: value),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": AUTO}]}),
]


class Section(BaseModel):
    """A section of the configuration.

    Unknown keys and values of the wrong type are errors. A section cannot be modified after it has
    been created.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def option(
    default: Any, description: str | None = None, *, resume: Resume | None = None, **limits: Any
) -> Any:
    """Declare an option: its default, its help text and its limits (`ge`, `lt`, ...).

    `resume` says what happens if a run is resumed with a different value: `may_change` accepts the
    new value, `fixed` refuses it, and `same_data` accepts it if the training text has not changed.
    An option without a policy has the policy of its section; without that, it is `fixed`.
    """
    return Field(
        default=default, description=description, json_schema_extra=_extra(resume), **limits
    )


def section(kind: type[Section], *, resume: Resume | None = None) -> Any:
    """Declare a section inside another. `resume` applies to all its options (see `option`)."""
    return Field(default_factory=kind, json_schema_extra=_extra(resume))


def _extra(resume: Resume | None) -> Any:
    return None if resume is None else {"resume": resume}


def resume_policy(model: type[BaseModel], key: str) -> Resume:
    """Return the resume policy for the option of `model` with the dotted name `key`."""
    policy: Resume = "fixed"
    for name in key.split("."):
        field = model.model_fields.get(name)
        if field is None:
            break  # for a list item such as `train[0]`, the policy of the section applies
        if isinstance(field.json_schema_extra, dict):
            policy = field.json_schema_extra["resume"]  # type: ignore[assignment]
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        model = field.annotation
    return policy
