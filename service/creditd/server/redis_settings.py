"""The settings that say where Redis is: a part of the service's that administration reads without the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, PrivateAttr, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from typing_extensions import Self

from creditd.cache.redis import RedisChoice, check_url


class RedisSettings(BaseSettings):
    """Where Redis is. Variables win over the file; what stands beside these settings is not looked at."""

    model_config = SettingsConfigDict(
        env_prefix="CREDITD_", extra="ignore", frozen=True, use_attribute_docstrings=True, validate_default=True
    )

    redis_url: SecretStr | None = None
    """Where replicas share utilities: `redis://user@host:port/0`, `rediss://…` or `unix:///path`. None: they do not."""
    redis_password: SecretStr | None = None
    """Of the user in `redis_url`."""
    redis_password_file: Path | None = None
    """File that holds it, read at boot."""
    redis_connections: Annotated[int, Field(ge=1, le=1024)] = 16
    """Connections to Redis at most."""

    _redis_password: str | None = PrivateAttr(default=None)

    @property
    def redis(self) -> RedisChoice | None:
        """Where Redis is, and who asks; None if there is none."""
        if self.redis_url is None:
            return None
        return RedisChoice(
            self.redis_url.get_secret_value(), password=self._redis_password, connections=self.redis_connections
        )

    @model_validator(mode="after")
    def _redis_is_usable(self) -> Self:
        if self.redis_password is not None and self.redis_password_file is not None:
            raise ValueError("give redis_password or redis_password_file, not both")
        if self.redis_url is None:
            if self.redis_password is not None or self.redis_password_file is not None:
                raise ValueError("a password of Redis needs redis_url, the address that it is for")
            return self
        if self.redis_password is not None:
            self._redis_password = self.redis_password.get_secret_value()
        if self.redis_password_file is not None:
            try:
                self._redis_password = self.redis_password_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"redis_password_file cannot be read: {error}") from None
        check_url(self.redis_url.get_secret_value())
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over variables over the TOML file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
