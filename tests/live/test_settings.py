"""Settings: read once, wrong ones named, unknown ones reported."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from live.engines import EngineError
from live.settings import (
    TABLE,
    Settings,
    SettingsError,
    default_data_dir,
    describe,
    environment_of,
    read_settings,
    unknown,
)

SECRET = "0123456789abcdef0123456789abcdef"


def read(tmp_path: Path, **given: str) -> Settings:
    environment = {"COMPANION_DATA_DIR": str(tmp_path / "data"), "COMPANION_SECRET": SECRET}
    return read_settings(environment | {f"COMPANION_{name}": value for name, value in given.items()})


def test_without_any_the_engines_are_embedded_and_the_address_is_local(tmp_path: Path) -> None:
    settings = read_settings({"HOME": str(tmp_path)})
    assert settings.embedded
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.public_url == "http://127.0.0.1:8000"
    assert settings.data_dir == tmp_path / ".local" / "share" / "companion"
    assert (settings.currency, settings.timezone) == ("CNY", "Asia/Shanghai")
    assert settings.sms == "off"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "eighty", "a whole number from 0 to 65535"),
        ("PORT", "65536", "a whole number from 0 to 65535"),
        ("PORT", "tcp://10.0.0.1:80", "a whole number from 0 to 65535"),
        ("WORKERS", "0", "a whole number from 1 to 64"),
        ("DRAIN_S", "soon", "seconds from 0 to 300"),
        ("DRAIN_S", "nan", "seconds from 0 to 300"),
        ("PUBLIC_URL", "live.example.com", "an address such as https://"),
        ("PUBLIC_URL", "https://[", "an address such as https://"),
        ("PUBLIC_URL", "https://live.example.com:port", "an address such as https://"),
        ("ALLOWED_ORIGINS", "https://shop.example.com/page", "origins such as"),
        ("TRUSTED_PROXIES", "10.0.0.0/8, proxy", "networks such as"),
        ("REDIS_URL", "http://localhost", "a URL that begins with redis://"),
        ("DATABASE_URL", "mysql://localhost", "a URL that begins with postgresql://"),
        ("TIMEZONE", "Asia/Atlantis", "a zone such as Asia/Shanghai"),
        ("TIMEZONE", "../../etc/passwd", "a zone such as Asia/Shanghai"),
        ("CURRENCY", "yuan", "a currency's three capitals"),
        ("SANDBOX", "perhaps", "yes or no"),
        ("SMS", "pigeon", "one of"),
        ("LOG_LEVEL", "loud", "one of debug, info"),
        ("SHOP_NAME", "a\nb", "one line of at most 40 characters"),
    ],
)
def test_a_bad_value_is_named_in_one_line(tmp_path: Path, name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, **{name: value})
    line = str(caught.value)
    assert line.startswith(f"COMPANION_{name} is {value!r}, but must be {said}")
    assert "\n" not in line


def test_a_short_secret_is_refused_without_being_shown(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="COMPANION_SECRET must be at least 32 characters") as caught:
        read(tmp_path, SECRET="hunter2")
    assert "hunter2" not in str(caught.value)


def test_one_engine_url_without_the_other_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match="set both COMPANION_REDIS_URL and COMPANION_DATABASE_URL, or neither"
    ):
        read(tmp_path, REDIS_URL="redis://localhost")
    both = read(tmp_path, REDIS_URL="redis://localhost", DATABASE_URL="postgresql://localhost/shop")
    assert not both.embedded


def test_an_unset_secret_is_made_once_and_kept_private(tmp_path: Path) -> None:
    first = read(tmp_path, SECRET="")
    kept = tmp_path / "data" / "secret"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert len(first.secret) == 64
    assert read(tmp_path, SECRET="").secret == first.secret


def test_a_kept_secret_that_others_can_read_or_that_is_damaged_is_refused(tmp_path: Path) -> None:
    read(tmp_path, SECRET="")
    kept = tmp_path / "data" / "secret"
    kept.chmod(0o644)
    with pytest.raises(SettingsError, match="can be read by other users: chmod 600"):
        read(tmp_path, SECRET="")
    kept.chmod(0o600)
    kept.write_text("short")
    with pytest.raises(SettingsError, match="is damaged"):
        read(tmp_path, SECRET="")


def test_a_newer_folder_is_refused_before_its_secret_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "FORMAT").write_text("7")
    with pytest.raises(EngineError, match="is of version 7"):
        read(tmp_path, SECRET="")


def test_lists_and_addresses_are_tidied(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        PUBLIC_URL="https://live.example.com/",
        ALLOWED_ORIGINS="https://a.example.com, https://b.example.com/",
        TRUSTED_PROXIES="10.0.0.0/8,192.0.2.7",
    )
    assert settings.public_url == "https://live.example.com"
    assert settings.allowed_origins == ("https://a.example.com", "https://b.example.com")
    assert settings.trusted_proxies == ("10.0.0.0/8", "192.0.2.7/32")


def test_listening_everywhere_still_gives_an_address_to_open(tmp_path: Path) -> None:
    assert read(tmp_path, HOST="0.0.0.0", PORT="81").public_url == "http://127.0.0.1:81"
    assert read(tmp_path, HOST="::1").public_url == "http://[::1]:8000"


def test_the_sandbox_brings_its_own_messages_unless_told_otherwise(tmp_path: Path) -> None:
    assert read(tmp_path, SANDBOX="yes").sms == "sandbox"
    assert read(tmp_path, SANDBOX="yes", SMS="off").sms == "off"


def test_a_child_reads_the_same_settings(tmp_path: Path) -> None:
    settings = read(tmp_path, SANDBOX="on", TRUSTED_PROXIES="10.0.0.0/8", DRAIN_S="0.5", SHOP_NAME="禾苗家")
    assert read_settings(environment_of(settings)) == settings


def test_unknown_settings_are_reported_with_the_name_that_was_meant() -> None:
    lines = unknown({"COMPANION_REDSI_URL": "x", "COMPANION_ZZZ": "x", "COMPANION_PORT": "1", "HOME": "/"})
    assert lines == [
        "COMPANION_REDSI_URL is no setting; did you mean COMPANION_REDIS_URL?",
        "COMPANION_ZZZ is no setting",
    ]


def test_the_data_folder_follows_the_desktops_custom() -> None:
    assert default_data_dir({"XDG_DATA_HOME": "/x", "HOME": "/h"}) == Path("/x/companion")
    assert default_data_dir({"XDG_DATA_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/share/companion")


def test_nothing_secret_is_in_its_text(tmp_path: Path) -> None:
    shown = repr(read(tmp_path, REDIS_URL="redis://:pass@h", DATABASE_URL="postgresql://u:word@h/d"))
    assert SECRET not in shown
    assert "pass@" not in shown
    assert "word@" not in shown


def test_every_setting_is_in_the_table_once_and_has_a_field() -> None:
    names = [setting.name for setting in TABLE]
    assert len(set(names)) == len(names)
    assert {setting.field for setting in TABLE} == set(Settings.__struct_fields__)
    for name in names:
        assert f"`COMPANION_{name}`" in describe()
