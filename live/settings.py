"""Every setting: read once from the environment into one frozen struct and handed down.

`TABLE` is the whole list. `docs/settings.md` holds the text that `describe()` makes of it, and a test
compares the two.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import msgspec

from live.cluster import SCHEMES as CLUSTER_SCHEMES
from live.cluster import ClusterUrl
from live.engines import make_data_dir, write_private

if TYPE_CHECKING:
    from commerce.wechat import WechatKeys

PREFIX = "COMPANION_"
SECRET_CHARS_MIN = 32


class SettingsError(Exception):
    """One line: which setting is wrong, and what it should be."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the process was told. The URLs are empty until the embedded engines have theirs."""

    host: str
    port: int
    public_url: str  # without a slash at the end
    allowed_origins: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    data_dir: Path
    redis_url: str
    database_url: str
    pool_size: int
    secret: str
    workers: int
    join_rate: int
    comments_shown_per_s: int
    buffers_max_mb: int
    drain_s: float
    shop_name: str
    currency: str
    timezone: str
    member_day: int
    member_day_percent: int
    points_months: int
    sandbox: bool
    sandbox_url: str
    payment_provider: str
    wechat_mchid: str
    wechat_appid: str
    wechat_private_key: str
    wechat_cert_serial: str
    wechat_apiv3_key: str
    wechat_public_key: str
    wechat_public_key_id: str
    wechat_notify_url: str
    wechat_gateway: str
    sms: str
    plan_refund_later: str
    approve_above_fen: int
    rebate_cap_percent: int
    budget_benefit_fen: int
    budget_show_fen: int
    budget_month_fen: int
    log_level: str

    @property
    def embedded(self) -> bool:
        """Whether the engines are ours to start."""
        return not self.redis_url

    def __repr__(self) -> str:
        """Without what must not be in a log."""
        return f"Settings(public_url={self.public_url!r}, data_dir={str(self.data_dir)!r}, …)"


class Setting(NamedTuple):
    """One row of the table: `COMPANION_<NAME>`, its field, default, reader and meaning."""

    name: str
    default: str
    read: Callable[[str], Any]
    meaning: str

    @property
    def field(self) -> str:
        return self.name.lower()


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise SettingsError(f"a whole number from {least} to {most}")
        return number

    return read


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise SettingsError(f"seconds from {least:g} to {most:g}")
        return number

    return read


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise SettingsError("one of " + ", ".join(words))
        return text

    return read


def _yes_or_no(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise SettingsError("yes or no")


def _text(most: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        if len(text) > most or any(ord(sign) < 32 for sign in text):
            raise SettingsError(f"one line of at most {most} characters")
        return text

    return read


def _web_address(text: str) -> str:
    if not text:
        return ""
    parts = _split(text)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise SettingsError("an address such as https://live.example.com")
    return text.rstrip("/")


def _origins(text: str) -> tuple[str, ...]:
    found = tuple(_web_address(part.strip()) for part in text.split(",") if part.strip())
    for origin in found:
        if urlsplit(origin).path:
            raise SettingsError("origins such as https://shop.example.com, with commas between and no path")
    return found


def _networks(text: str) -> tuple[str, ...]:
    found = []
    for part in (part.strip() for part in text.split(",")):
        if part:
            try:
                found.append(str(ipaddress.ip_network(part)))
            except ValueError:
                raise SettingsError("networks such as 10.0.0.0/8 or 192.0.2.7, with commas between") from None
    return tuple(found)


def _store(*schemes: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        parts = _split(text) if text else None
        if text and (parts is None or parts.scheme not in schemes):
            raise SettingsError("a URL that begins with " + " or ".join(f"{scheme}://" for scheme in schemes))
        return text

    return read


def _redis(text: str) -> str:
    try:
        if ClusterUrl.parse(text) is not None:
            return text
    except ValueError:
        raise SettingsError("an address such as redis+cluster://node1:6379,node2:6379") from None
    return _store("redis", "rediss", "unix", *CLUSTER_SCHEMES)(text)


def _split(text: str) -> Any:
    try:
        parts = urlsplit(text)
        _ = parts.port  # reads it, and raises for one that is none
    except ValueError:
        return None
    return parts


def _secret(text: str) -> str:
    if text and len(text) < SECRET_CHARS_MIN:
        raise SettingsError(f"at least {SECRET_CHARS_MIN} characters long")
    return text


def _key_of_32(text: str) -> str:
    if text and (len(text) != 32 or not text.isascii()):
        raise SettingsError("32 characters")
    return text


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ValueError, OSError, KeyError):
        raise SettingsError("a zone such as Asia/Shanghai") from None
    return text


def _currency(text: str) -> str:
    if not (len(text) == 3 and text.isascii() and text.isalpha() and text.isupper()):
        raise SettingsError("a currency's three capitals, such as CNY")
    return text


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


TABLE = (
    Setting("HOST", "127.0.0.1", _text(255), "Address to listen on; `0.0.0.0` for all."),
    Setting("PORT", "8000", _whole(0, 65535), "Port to listen on; 0 takes a free one."),
    Setting(
        "PUBLIC_URL",
        "",
        _web_address,
        "How browsers and payment providers reach the service: in QR codes, webhooks and the return from a "
        "payment. Default: host and port above, which a phone cannot reach when they are 127.0.0.1.",
    ),
    Setting(
        "ALLOWED_ORIGINS", "", _origins, "Other sites whose pages may open sockets, with commas between."
    ),
    Setting(
        "TRUSTED_PROXIES", "", _networks, "Proxies whose X-Forwarded-For is believed: addresses or networks."
    ),
    Setting(
        "DATA_DIR",
        "",
        _folder,
        "Folder of the embedded engines and the secret. Default: `$XDG_DATA_HOME/companion`, else "
        "`~/.local/share/companion`.",
    ),
    Setting(
        "REDIS_URL",
        "",
        _redis,
        "Redis 7.0 or Valkey and later; a Cluster as `redis+cluster://node1:6379,node2:6379` or "
        "`rediss+cluster://…`, of which some nodes are enough. Unset with the next one: embedded engines in "
        "the data folder.",
    ),
    Setting("DATABASE_URL", "", _store("postgresql", "postgres"), "PostgreSQL 15 or later."),
    Setting("POOL_SIZE", "10", _whole(2, 200), "Connections to PostgreSQL, at most, of each process."),
    Setting(
        "SECRET",
        "",
        _secret,
        f"Signs tokens, cookies and quotes; {SECRET_CHARS_MIN} characters or more. Default: made once and "
        "kept in the data folder (mode 0600). Several machines must be given the same.",
    ),
    Setting("WORKERS", "1", _whole(1, 64), "Server processes; `--workers` wins."),
    Setting("JOIN_RATE", "1000", _whole(1, 100_000), "Viewers a process admits each second."),
    Setting(
        "COMMENTS_SHOWN_PER_S",
        "20",
        _whole(0, 10_000),
        "Comments a show puts on screens each second; of more, a sample. 0 shows all.",
    ),
    Setting(
        "BUFFERS_MAX_MB",
        "256",
        _whole(16, 65_536),
        "Memory for what viewers have yet to read, of each process; the slowest are let go first.",
    ),
    Setting(
        "DRAIN_S", "3", _seconds(0, 300), "Seconds in which a stopping process sends its viewers elsewhere."
    ),
    Setting("SHOP_NAME", "", _text(40), "Name of the shop on its pages."),
    Setting("CURRENCY", "CNY", _currency, "The one currency of all prices."),
    Setting("TIMEZONE", "Asia/Shanghai", _zone, "The shop's zone: its days end at local midnight."),
    Setting(
        "MEMBER_DAY",
        "18",
        _whole(0, 28),
        "Day of the month on which members of a plan buy at a percentage of the list price; 0: no such day.",
    ),
    Setting("MEMBER_DAY_PERCENT", "88", _whole(50, 99), "What is paid of the list price on that day."),
    Setting(
        "POINTS_MONTHS",
        "12",
        _whole(0, 120),
        "Points end with that many months after the one in which they became active; 0: never.",
    ),
    Setting(
        "SANDBOX",
        "no",
        _yes_or_no,
        "The sandbox payment provider answers at `/sandbox`. Never where real people buy.",
    ),
    Setting(
        "SANDBOX_URL",
        "",
        _web_address,
        "Where `companion sandbox` runs as a process of its own. Default: inside the server process.",
    ),
    Setting("PAYMENT_PROVIDER", "sandbox", _one_of("sandbox", "wechat"), "Who collects the money."),
    Setting("WECHAT_MCHID", "", _text(32), "WeChat Pay: the merchant's number."),
    Setting("WECHAT_APPID", "", _text(32), "WeChat Pay: the app or official account that sells."),
    Setting("WECHAT_PRIVATE_KEY", "", _text(400), "WeChat Pay: file of the merchant's private key (PEM)."),
    Setting("WECHAT_CERT_SERIAL", "", _text(64), "WeChat Pay: serial number of the merchant's certificate."),
    Setting("WECHAT_APIV3_KEY", "", _key_of_32, "WeChat Pay: the APIv3 key, 32 characters."),
    Setting(
        "WECHAT_PUBLIC_KEY",
        "",
        _text(400),
        "WeChat Pay: file of WeChat's public key, or of its platform certificate (PEM).",
    ),
    Setting(
        "WECHAT_PUBLIC_KEY_ID",
        "",
        _text(64),
        "WeChat Pay: id of that public key, `PUB_KEY_ID_…`. Not needed with a certificate.",
    ),
    Setting(
        "WECHAT_NOTIFY_URL",
        "",
        _web_address,
        "WeChat Pay: where it sends its news. Default: `/v1/payments/wechat/webhook` at the public URL.",
    ),
    Setting(
        "WECHAT_GATEWAY",
        "https://api.mch.weixin.qq.com",
        _web_address,
        "WeChat Pay: its address; `https://api2.mch.weixin.qq.com` is the one for trouble.",
    ),
    Setting(
        "SMS",
        "",
        _one_of("", "sandbox", "off"),
        "Who sends sign-in codes: `sandbox` shows them on the page, `off` refuses. Default: `sandbox` with "
        "the sandbox, else `off`.",
    ),
    Setting(
        "PLAN_REFUND_LATER",
        "end",
        _one_of("end", "pro_rata"),
        "A plan given back after seven days: `end` cancels it for its end, `pro_rata` also sends back the part of "
        "the fee for the time left.",
    ),
    Setting(
        "APPROVE_ABOVE_FEN",
        "5000000",
        _whole(0, 100_000_000_000),
        "What a flash sale cuts off, a gift or a kind of coupon gives away in all: above this a second person "
        "must grant it. 0 is never.",
    ),
    Setting(
        "REBATE_CAP_PERCENT",
        "10",
        _whole(1, 100),
        "How much of what is paid for goods the rules may give back, in points, benefits and coupons. What "
        "passes it cannot be saved.",
    ),
    Setting(
        "BUDGET_BENEFIT_FEN", "0", _whole(0, 100_000_000_000), "What one benefit may cost; 0 is no limit."
    ),
    Setting(
        "BUDGET_SHOW_FEN",
        "0",
        _whole(0, 100_000_000_000),
        "What the benefits of one show may cost, where no budget is set for it; 0 is no limit.",
    ),
    Setting(
        "BUDGET_MONTH_FEN",
        "0",
        _whole(0, 100_000_000_000),
        "What the benefits opened in a calendar month may cost, where no budget is set; 0 is no limit.",
    ),
    Setting("LOG_LEVEL", "info", _one_of("debug", "info", "warning", "error"), "What is logged."),
)


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings. Raises SettingsError; touches the disk only for an unset secret and WeChat Pay's keys."""
    values: dict[str, Any] = {}
    for setting in TABLE:
        given = environment.get(PREFIX + setting.name, "").strip() or setting.default
        try:
            values[setting.field] = setting.read(given)
        except SettingsError as error:
            shown = "" if setting.name in ("SECRET", "WECHAT_APIV3_KEY") else f" is {given!r}, but"
            raise SettingsError(f"{PREFIX}{setting.name}{shown} must be {error}") from None
    if bool(values["redis_url"]) != bool(values["database_url"]):
        raise SettingsError(
            f"set both {PREFIX}REDIS_URL and {PREFIX}DATABASE_URL, or neither for the embedded engines"
        )
    values["data_dir"] = data_dir_of(environment)
    if not values["public_url"]:
        values["public_url"] = _own_address(values["host"], values["port"])
    if values["payment_provider"] == "wechat":
        _check_wechat(values)
    if not values["sms"]:
        values["sms"] = "sandbox" if values["sandbox"] else "off"
    if not values["secret"]:
        values["secret"] = _kept_secret(values["data_dir"])
    return Settings(**values)


def _check_wechat(values: Mapping[str, Any]) -> None:
    """The parts that WeChat Pay cannot do without."""
    needed = ("mchid", "appid", "private_key", "cert_serial", "apiv3_key", "public_key")
    for name in (f"wechat_{part}" for part in needed):
        if not values[name]:
            raise SettingsError(
                f"{PREFIX}PAYMENT_PROVIDER is 'wechat', which needs {PREFIX}{name.upper()} too"
            )
    if values["currency"] != "CNY":
        raise SettingsError(f"WeChat Pay takes CNY only: {PREFIX}CURRENCY is {values['currency']!r}")
    if not values["public_url"].startswith("https://") and not values["wechat_notify_url"]:
        raise SettingsError(
            f"WeChat Pay sends its news to https addresses only: set {PREFIX}PUBLIC_URL to one, "
            f"or {PREFIX}WECHAT_NOTIFY_URL"
        )
    wechat_keys(values["wechat_private_key"], values["wechat_public_key"], values["wechat_public_key_id"])


def wechat_keys(private_key: str, public_key: str, public_key_id: str) -> WechatKeys:
    """The keys in these files. Raises SettingsError, also when the library is not installed."""
    try:
        from commerce.wechat import BadKey, WechatKeys
    except ImportError:
        raise SettingsError(
            f"{PREFIX}PAYMENT_PROVIDER is 'wechat', which needs a library: pip install 'live-companion[wechat]'"
        ) from None
    texts = []
    for name, path in (("PRIVATE_KEY", private_key), ("PUBLIC_KEY", public_key)):
        try:
            texts.append(Path(path).expanduser().read_text("ascii"))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SettingsError(f"{PREFIX}WECHAT_{name} is {path!r}, which cannot be read: {why}") from None
    try:
        return WechatKeys.load(texts[0], texts[1], public_key_id)
    except BadKey as error:
        raise SettingsError(f"{PREFIX}WECHAT_{error.which.upper()} {error}") from None


def data_dir_of(environment: Mapping[str, str]) -> Path:
    """The data folder, whether there is one or not."""
    given = environment.get(f"{PREFIX}DATA_DIR", "").strip()
    return _folder(given) if given else default_data_dir(environment)


def has_secret(environment: Mapping[str, str]) -> bool:
    """Whether `read_settings` would find a secret, instead of making one."""
    given = bool(environment.get(f"{PREFIX}SECRET", "").strip())
    return given or (data_dir_of(environment) / "secret").exists()


def has_deployment(environment: Mapping[str, str]) -> bool:
    """Whether there is anything to act on: a secret, and engines of its own or a database kept here."""
    elsewhere = bool(environment.get(f"{PREFIX}DATABASE_URL", "").strip())
    return has_secret(environment) and (elsewhere or (data_dir_of(environment) / "postgres").exists())


def unknown(environment: Mapping[str, str]) -> list[str]:
    """One line for each COMPANION_* that nothing reads, with the name that was probably meant."""
    known = [setting.name for setting in TABLE]
    lines = []
    for name in sorted(name for name in environment if name.startswith(PREFIX)):
        own = name.removeprefix(PREFIX)
        if own not in known:
            close = difflib.get_close_matches(own, known, 1)
            lines.append(f"{name} is no setting" + (f"; did you mean {PREFIX}{close[0]}?" if close else ""))
    return lines


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings as a child process reads them."""
    shown: dict[str, str] = {}
    for setting in TABLE:
        value = getattr(settings, setting.field)
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, tuple):
            value = ",".join(value)
        shown[PREFIX + setting.name] = str(value)
    return shown


def describe() -> str:
    """The table as Markdown."""
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for setting in TABLE:
        default = f"`{setting.default}`" if setting.default else "–"
        rows.append(f"| `{PREFIX}{setting.name}` | {default} | {setting.meaning} |")
    return "\n".join(rows) + "\n"


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/companion`, by the custom of desktop systems."""
    base = environment.get("XDG_DATA_HOME", "")
    home = environment.get("HOME") or os.path.expanduser("~")
    folder = Path(base) if base and os.path.isabs(base) else Path(home) / ".local" / "share"
    return folder / "companion"


def _own_address(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"http://{host}:{port}"


def _kept_secret(data_dir: Path) -> str:
    make_data_dir(data_dir)
    path = data_dir / "secret"
    try:
        if not path.exists():
            write_private(path, secrets.token_hex(32).encode())
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SettingsError(
                f"{path} can be read by other users: chmod 600 it, or delete it for a new one"
            )
        kept = path.read_text().strip()
    except OSError as error:
        raise SettingsError(f"{path} cannot be used ({error.strerror}): set {PREFIX}SECRET") from error
    if len(kept) < SECRET_CHARS_MIN:
        raise SettingsError(f"{path} is damaged: delete it for a new one; everybody signs in again")
    return kept
