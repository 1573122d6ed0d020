"""Every setting of Forebay, declared once. `docs/settings.md` is generated from here (`make docs`) and a test holds it.

`environment` says where values come from, `common` has what all processes read. `inference` is a pod's, `fleet` that of
`forebay up`, and `gateway` the gateway's, which has many: those of one subject stand in `stores`, `identity`, `limits`,
`screening`, `recall` and `routing`.
"""

from services.common.settings.common import CommonSettings
from services.common.settings.environment import PREFIX, is_secret, wrong_settings
from services.common.settings.fleet import FleetSettings
from services.common.settings.gateway import GatewaySettings
from services.common.settings.identity import IdentitySettings
from services.common.settings.inference import InferenceSettings
from services.common.settings.limits import Price
from services.common.settings.screening import ScreeningSettings

ALL: tuple[type[CommonSettings], ...] = (CommonSettings, GatewaySettings, InferenceSettings, FleetSettings)
"""What the processes read, one class for each kind of process beside what they share."""

__all__ = [
    "ALL",
    "PREFIX",
    "CommonSettings",
    "FleetSettings",
    "GatewaySettings",
    "IdentitySettings",
    "InferenceSettings",
    "Price",
    "ScreeningSettings",
    "is_secret",
    "wrong_settings",
]
