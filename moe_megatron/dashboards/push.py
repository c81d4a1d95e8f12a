"""Uploads dashboards to a Grafana through its HTTP API.

Grafana 12 and newer have /apis/dashboard.grafana.app, older ones /api/dashboards/db; a request
finds out which. The token is sent in one header and nowhere else: redirects are not followed, since
they would pass it on. It does not know where dashboards come from.
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
from moe_megatron.reading import parse_json

_GROUP = "dashboard.grafana.app"
_CLASSIC_VERSIONS = ("v1", "v1beta1", "v0alpha1")
"""API versions that accept the classic schema, preferred one first."""

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
            f"{req.full_url} redirects to {newurl}; give the address at which Grafana itself "
            "answers, with its path."
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: Any


class Grafana:
    """A Grafana server.

    Args:
        url: Its address, with the path it is served under.
        token: Token of a service account that may write dashboards; None for a Grafana without
            log-in.
        namespace: Namespace of the organisation, in the new API.

    Raises:
        ConfigError: The address is not an HTTP address, or holds a password.
    """

    def __init__(self, url: str, token: str | None, namespace: str = "default") -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"--url must be http://HOST:PORT or https://HOST, not {url!r}.")
        if parts.username is not None or parts.query or parts.fragment:
            raise ConfigError(
                "--url must hold only the address; give the token of a service account in the "
                "environment variable GRAFANA_TOKEN or with --token-file."
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
            folder: uid of the folder to store it in; None: the top level.

        Returns:
            The address of the dashboard.

        Raises:
            BackendUnavailableError: Grafana does not answer, or rejects the dashboard.
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
        self._require(answer, {200}, "list its APIs")
        entries = answer.body.get("versions", []) if isinstance(answer.body, dict) else []
        versions = [entry.get("version") for entry in entries if isinstance(entry, dict)]
        for version in _CLASSIC_VERSIONS:
            if version in versions:
                return version
        raise BackendUnavailableError(
            f"the Grafana at {self._url} accepts dashboards as {', '.join(map(str, versions))}, "
            f"but only {', '.join(_CLASSIC_VERSIONS)} are supported; load the files of "
            "grafana/dashboards by provisioning."
        )

    def _push_legacy(self, dashboard: Json, folder: str | None) -> str:
        body = {"dashboard": {**dashboard, "id": None}, "overwrite": True}
        if folder is not None:
            body["folderUid"] = folder
        answer = self._request("POST", "/api/dashboards/db", body)
        self._require(answer, {200}, f"store {dashboard['uid']}")
        return self._url + f"/d/{dashboard['uid']}"

    def _push_resource(self, version: str, dashboard: Json, folder: str | None) -> str:
        uid = dashboard["uid"]
        collection = f"/apis/{_GROUP}/{version}/namespaces/{quote(self._namespace)}/dashboards"
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
        present = self._request("GET", f"{collection}/{uid}")
        if present.status == 404:
            answer = self._request("POST", collection, body)
        else:
            self._require(present, {200}, f"look for {uid}")
            # If someone changes the dashboard meanwhile, Grafana then rejects this update.
            metadata["resourceVersion"] = present.body["metadata"]["resourceVersion"]
            answer = self._request("PUT", f"{collection}/{uid}", body)
        self._require(answer, {200, 201}, f"store {uid}")
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

    def _require(self, answer: _Answer, good: set[int], what: str) -> None:
        if answer.status in good:
            if not isinstance(answer.body, dict):
                raise BackendUnavailableError(
                    f"{self._url} answers, but not like a Grafana; give the address of Grafana, "
                    "with the path it is served under."
                )
            return
        message = answer.body.get("message") if isinstance(answer.body, dict) else None
        remedies = {
            401: "give the token of a service account in the environment variable GRAFANA_TOKEN or "
            "with --token-file",
            403: "the token's service account needs the role Editor, or dashboards:write",
            404: "check --namespace and --target-folder",
            409: "someone else changed it at the same time; run this again",
            412: "a dashboard with that uid is provisioned there from files; change those",
        }
        remedy = remedies.get(answer.status, "see Grafana's log")
        raise BackendUnavailableError(
            f"the Grafana at {self._url} refused to {what}: {answer.status}"
            f"{f' ({message})' if message else ''}; {remedy}."
        )


def _parse(text: bytes) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None
