"""Sends dashboards to a Grafana, through the HTTP API that it answers on.

Grafana 12 and newer have /apis/dashboard.grafana.app, older ones /api/dashboards/db; which one is
found by asking. The token goes into one header and nowhere else: redirects are not followed, since
they would carry it along. It does not know where dashboards come from.
"""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import quote, urlsplit

from moe_megatron.dashboards.panels import Json
from moe_megatron.errors import BackendUnavailableError, ConfigError

_GROUP = "dashboard.grafana.app"
_CLASSIC_VERSIONS = ("v1", "v1beta1", "v0alpha1")
"""Versions that take the classic schema, the preferred one first."""

_SECONDS = 30.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        raise ConfigError(
            f"{req.full_url} redirects to {newurl}; give the address that Grafana itself answers "
            "at, with its path."
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: Any


class Grafana:
    """One Grafana.

    Args:
        url: Its address, with the path it is served under.
        token: Of a service account that may write dashboards; None for a Grafana without log-in.
        namespace: Of the organisation, in the new API.

    Raises:
        ConfigError: The address is not one of HTTP, or holds a password.
    """

    def __init__(self, url: str, token: str | None, namespace: str = "default") -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"--url must be http://HOST:PORT or https://HOST, not {url!r}.")
        if parts.username is not None or parts.query or parts.fragment:
            raise ConfigError(
                "--url must hold nothing but the address; give the token of a service account in "
                "the variable GRAFANA_TOKEN or with --token-file."
            )
        self._url = url.rstrip("/")
        self._token = token
        self._namespace = namespace
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._api: str | None = None

    def push(self, dashboard: Json, folder: str | None = None) -> str:
        """Create or replace a dashboard.

        Args:
            dashboard: In the classic schema, with a uid.
            folder: uid of the folder to put it in; None leaves it at the top.

        Returns:
            Its address.

        Raises:
            BackendUnavailableError: Grafana does not answer, or refuses.
        """
        if self._api is None:
            self._api = self._choose_api()
        if self._api == "legacy":
            return self._push_legacy(dashboard, folder)
        return self._push_resource(self._api, dashboard, folder)

    def _choose_api(self) -> str:
        answer = self._request("GET", f"/apis/{_GROUP}/")
        if answer.status == 404:
            return "legacy"
        self._demand(answer, {200}, "ask for its APIs")
        groups = answer.body.get("versions", []) if isinstance(answer.body, dict) else []
        versions = [one.get("version") for one in groups if isinstance(one, dict)]
        for version in _CLASSIC_VERSIONS:
            if version in versions:
                return version
        raise BackendUnavailableError(
            f"the Grafana at {self._url} takes dashboards as {', '.join(map(str, versions))}, none "
            f"of which is known here ({', '.join(_CLASSIC_VERSIONS)}); load the files of "
            "grafana/dashboards by provisioning."
        )

    def _push_legacy(self, dashboard: Json, folder: str | None) -> str:
        body = {"dashboard": {**dashboard, "id": None}, "overwrite": True}
        if folder is not None:
            body["folderUid"] = folder
        answer = self._request("POST", "/api/dashboards/db", body)
        self._demand(answer, {200}, f"store {dashboard['uid']}")
        return self._url + f"/d/{dashboard['uid']}"

    def _push_resource(self, version: str, dashboard: Json, folder: str | None) -> str:
        uid = dashboard["uid"]
        every = f"/apis/{_GROUP}/{version}/namespaces/{quote(self._namespace)}/dashboards"
        metadata: Json = {"name": uid}
        if folder is not None:
            metadata["annotations"] = {"grafana.app/folder": folder}
        # The uid is the name of the resource.
        spec = {key: value for key, value in dashboard.items() if key != "uid"}
        body = {
            "apiVersion": f"{_GROUP}/{version}",
            "kind": "Dashboard",
            "metadata": metadata,
            "spec": spec,
        }
        present = self._request("GET", f"{every}/{uid}")
        if present.status == 404:
            answer = self._request("POST", every, body)
        else:
            self._demand(present, {200}, f"look for {uid}")
            # So that a change made meanwhile is refused and not lost.
            metadata["resourceVersion"] = present.body["metadata"]["resourceVersion"]
            answer = self._request("PUT", f"{every}/{uid}", body)
        self._demand(answer, {200, 201}, f"store {uid}")
        return self._url + f"/d/{uid}"

    def _request(self, method: str, path: str, body: Json | None = None) -> _Answer:
        request = urllib.request.Request(self._url + path, method=method)
        request.add_header("Accept", "application/json")
        if self._token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with self._opener.open(request, timeout=_SECONDS) as response:
                return _Answer(response.status, _parse(response.read()))
        except urllib.error.HTTPError as error:
            with error:
                return _Answer(error.code, _parse(error.read()))
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise BackendUnavailableError(
                f"no Grafana answers at {self._url} ({reason}); check the address, and whether it "
                "can be reached from this machine."
            ) from error

    def _demand(self, answer: _Answer, good: set[int], what: str) -> None:
        if answer.status in good:
            if not isinstance(answer.body, dict):
                raise BackendUnavailableError(
                    f"{self._url} answers, but not as a Grafana does; give the address of Grafana, "
                    "with the path it is served under."
                )
            return
        message = answer.body.get("message") if isinstance(answer.body, dict) else None
        remedies = {
            401: "give the token of a service account in the variable GRAFANA_TOKEN or with "
            "--token-file",
            403: "the token's service account needs the role Editor, or dashboards:write",
            404: "check --namespace and --target-folder",
            409: "someone else changed it at the same time; run this again",
            412: "a dashboard of that uid is provisioned from files there; change those",
        }
        remedy = remedies.get(answer.status, "see Grafana's log")
        raise BackendUnavailableError(
            f"the Grafana at {self._url} refused to {what}: {answer.status}"
            f"{f' ({message})' if message else ''}; {remedy}."
        )


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
