"""Configurations: by name, and the numbers that all of them have."""

from typing import Any, ClassVar

from typing_extensions import Self  # typing has it from Python 3.11 on


class Presets:
    """Mixed into a configuration that has named sets of values."""

    presets: ClassVar[dict[str, dict[str, Any]]]

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """A named configuration, with some values overridden.

        Raises:
            ValueError: no such preset, or an override that the configuration does not have.
        """
        if name not in cls.presets:
            raise ValueError(f"no preset {name!r}; there are {', '.join(cls.presets)}")
        fields: dict[str, Any] = vars(cls)["__dataclass_fields__"]
        unknown = overrides.keys() - fields.keys()
        if unknown:
            raise ValueError(f"{cls.__name__} has no {', '.join(sorted(unknown))}")
        return cls(**{**cls.presets[name], **overrides})


def check_dropout(config: Any) -> None:
    """Raise ValueError unless everything that is called dropout is at least 0 and below 1."""
    for name, value in vars(config).items():
        if name.endswith("dropout") and not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1; got {value}")
