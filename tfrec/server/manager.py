"""Keeps the versions loaded that the configuration and the folders ask for.

A version is unloaded once another that is wanted serves, or none is wanted (TensorFlow Serving's availability
preserving policy): a new version that cannot be loaded leaves the old one serving.
Reference: tensorflow_serving/core/{aspired_versions_manager,availability_preserving_policy,loader_harness}.cc.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from tfrec.server.background import quiet
from tfrec.server.config import Labels, check_transition
from tfrec.server.servable import Servable
from tfrec.server.status import RequestError, invalid
from tfrec.server.version import AVAILABLE, END, LOADING, START, UNLOADING, Version
from tfrec.server.versions import aspired_versions

_LOG = logging.getLogger(__name__)
_LOOK_AGAIN = 0.2  # seconds between looks at whether a waiting caller is still there


@dataclass(frozen=True)
class Loading:
    """How versions are loaded.

    Args:
        load: makes a servable of a version's folder, warmed; raises RequestError.
        threads: versions loaded at the same time.
        retries: attempts after the first one.
        retry_seconds: pause between attempts.
        early_labels: whether a new label may name a version that is not yet available.
    """

    load: Callable[[Path], Servable] = Servable
    threads: int = 1
    retries: int = 5
    retry_seconds: float = 60.0
    early_labels: bool = False


class Manager:
    """The models of a server."""

    def __init__(self, loading: Loading | None = None):
        self._loading = loading or Loading()
        self._config = ModelServerConfig()  # the last that was asked for
        self._sources = ModelServerConfig()  # whose folders are looked at: the last whose labels were accepted
        self._labels: Labels = {}
        self._managed: dict[str, dict[int, Version]] = {}
        self._seen: dict[str, dict[int, Version]] = {}
        self._ready: dict[str, dict[int, Version]] = {}  # replaced, never changed: requests read it without a lock
        self._complaints: dict[str, str] = {}
        self._changed = threading.Condition(threading.RLock())
        self._reloading, self._closed = threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(self._loading.threads, "load")
        self._unloads: set[threading.Thread] = set()

    @contextlib.contextmanager
    def using(self, spec: ModelSpec) -> Iterator[tuple[Servable, Version]]:
        """The version that a request asks for, kept loaded inside the block.

        Raises:
            RequestError: there is none.
        """
        version, servable = self.acquire(spec)
        try:
            yield servable, version
        finally:
            version.release()

    def acquire(self, spec: ModelSpec) -> tuple[Version, Servable]:
        """The version that a request asks for, kept loaded until its ``release`` is called.

        Raises:
            RequestError: there is none.
        """
        name = spec.name
        if not name:
            raise invalid("ModelSpec has no name specified.")
        choice, number = spec.WhichOneof("version_choice"), None
        if choice:
            number = spec.version.value if choice == "version" else self.version_of(name, spec.version_label)
        while True:
            ready = self._ready.get(name, {})
            version = next(iter(ready.values()), None) if number is None else ready.get(number)
            if version is None:
                wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
                raise RequestError("NOT_FOUND", f"Servable not found for request: {wanted}")
            servable = version.acquire()
            if servable is not None:
                return version, servable

    def states(self, name: str, number: int | None = None) -> list[Version]:
        """Every version ever wanted, the newest first; or one of them.

        Raises:
            RequestError: there is none.
        """
        with self._changed:
            seen = self._seen.get(name, {})
            if number is not None and number not in seen:
                raise RequestError("NOT_FOUND", f"Could not find version {number} of model {name}")
            if not seen:
                raise RequestError("NOT_FOUND", f"Could not find any versions of model {name}")
            return [seen[number]] if number is not None else [seen[n] for n in sorted(seen, reverse=True)]

    def knows(self, name: str) -> bool:
        """Whether a version of this model is or was wanted."""
        return name in self._seen

    def version_of(self, name: str, label: str) -> int:
        """The version that a label stands for.

        Raises:
            RequestError: the label is unknown.
        """
        version = self._labels.get(name, {}).get(label)
        if version is None:
            raise invalid(f"Unrecognized servable version label: {label}")
        return version

    def reload(self, config: ModelServerConfig, waiting: Callable[[], bool] = lambda: True) -> None:
        """Serves another configuration and returns when its new models are available.

        Args:
            waiting: is asked now and then whether anybody still waits for the answer.

        Raises:
            RequestError: the configuration is refused, or a new model cannot be loaded.
        """
        with self._reloading:
            old = {model.name for model in self._sources.model_config_list.config}
            check_transition(self._config, config)
            if not config.WhichOneof("config"):
                return
            self._config = config
            self._labels = self._checked_labels(config)
            self._sources = config
            self.poll()
            self._await({model.name for model in config.model_config_list.config} - old, waiting)

    def poll(self) -> None:
        """Looks at the folders once, and starts what they and the configuration ask for."""
        models = {model.name: model for model in self._sources.model_config_list.config}
        with self._changed:
            for name in self._managed.keys() - models.keys():
                self._want(name, {})
            for name, model in models.items():
                try:
                    self._want(name, aspired_versions(name, Path(model.base_path), model.model_version_policy))
                    self._complaints.pop(name, None)
                except (RequestError, OSError) as error:
                    self._complain(name, str(error))

    def close(self) -> None:
        """Unloads everything; requests must have ended."""
        with self._changed:
            self._closed.set()
            self._sources = ModelServerConfig()
            for name in list(self._managed):
                self._want(name, {})
        self._pool.shutdown()
        for thread in list(self._unloads):
            thread.join()

    def _want(self, name: str, aspired: dict[int, Path]) -> None:
        managed = self._managed.setdefault(name, {})
        for number, version in list(managed.items()):
            version.wanted = number in aspired
            if version.state == END and not version.wanted:
                del managed[number]
        for number in sorted(aspired.keys() - managed.keys(), reverse=True):
            version = managed[number] = Version(name, number, aspired[number])
            self._seen.setdefault(name, {})[number] = version
            self._pool.submit(self._load, version)
        self._unload_unwanted(name)

    def _unload_unwanted(self, name: str) -> None:
        managed = self._managed.get(name, {})
        wanted = [version for version in managed.values() if version.wanted]
        if not wanted or any(version.state == AVAILABLE for version in wanted):
            for version in list(managed.values()):
                if version.state == AVAILABLE and not version.wanted:
                    self._set(version, UNLOADING)
                    thread = threading.Thread(target=self._unload, args=[version], name="unload")
                    self._unloads.add(thread)
                    thread.start()

    def _load(self, version: Version) -> None:
        self._set(version, LOADING)
        error: RequestError | None = RequestError("CANCELLED", "Load cancelled before we could try to load.")
        for attempt in range(self._loading.retries + 1):
            if attempt and self._closed.wait(self._loading.retry_seconds):
                break
            if self._closed.is_set() or not version.wanted:
                break
            error = self._try(version)
            if error is None:
                break
            _LOG.error("Loading servable: %s failed: %s", version, error.status())
        version.error = error
        self._set(version, END if error else AVAILABLE)

    def _try(self, version: Version) -> RequestError | None:
        try:
            with quiet(any(self._ready.values())):  # nobody waits in vain for the first version
                version.servable = self._loading.load(version.path)
        except RequestError as error:
            return error
        except Exception as error:  # whatever a model does while it loads, the others keep serving
            _LOG.exception("Loading servable: %s", version)
            return RequestError("INTERNAL", f"{type(error).__name__}: {error}")
        return None

    def _unload(self, version: Version) -> None:
        with quiet():
            version.unload()
        self._set(version, END)
        self._unloads.discard(threading.current_thread())

    def _set(self, version: Version, state: int) -> None:
        with self._changed:
            version.state = state
            managed = self._managed[version.name]
            if state == END and not version.wanted and managed.get(version.number) is version:
                del managed[version.number]
            ready = {n: managed[n] for n in sorted(managed, reverse=True) if managed[n].state == AVAILABLE}
            self._ready = {**self._ready, version.name: ready}
            _LOG.info("servable version %s: %s", version, _NAMES[state])
            if state in (AVAILABLE, END):
                self._unload_unwanted(version.name)
            self._changed.notify_all()

    def _checked_labels(self, config: ModelServerConfig) -> Labels:
        labels: Labels = {}
        for model in config.model_config_list.config:
            for label, number in model.version_labels.items():
                known = self._labels.get(model.name, {}).get(label, number)
                if not (self._loading.early_labels and known == number) and not self._is_available(model.name, number):
                    raise RequestError(
                        "FAILED_PRECONDITION",
                        f"Request to assign label to version {number} of model {model.name}, which is not currently "
                        "available for inference",
                    )
                labels.setdefault(model.name, {})[label] = number
        return labels

    def _is_available(self, name: str, number: int) -> bool:
        return number in self._ready.get(name, {})

    def _await(self, names: set[str], waiting: Callable[[], bool]) -> None:
        with self._changed:
            while not all(self._settled(name) for name in names):
                self._changed.wait(_LOOK_AGAIN)
                if not waiting() or self._closed.is_set():
                    return
            failed = [v for name in sorted(names) if not self._ready.get(name) for v in self._managed[name].values()]
        if failed:
            texts = "".join(f"{{{v} due to error: {v.error.status()}}}, " for v in failed if v.error)
            raise RequestError("UNKNOWN", f"{len(failed)} model(s) did not become available: {{{texts}}}")

    def _settled(self, name: str) -> bool:
        versions = self._managed.get(name, {}).values()
        return any(v.state == AVAILABLE for v in versions) or (
            len(versions) > 0 and all(v.state == END for v in versions)
        )

    def _complain(self, name: str, text: str) -> None:
        if self._complaints.get(name) != text:
            _LOG.error("FileSystemStoragePathSource encountered a filesystem access error: %s", text)
        self._complaints[name] = text


class FixedModel(Manager):
    """A manager of one version that is loaded already."""

    def __init__(self, name: str, version: int, servable: Servable):
        super().__init__()
        held = Version(name, version, servable.path)
        held.servable = servable
        self._managed[name] = {version: held}
        self._seen[name] = {version: held}
        self._set(held, AVAILABLE)


class Every:
    """Calls a function again and again in a thread of its own, by the monotonic clock; failures are logged.

    Args:
        seconds: between the end of a call and the next one.
    """

    def __init__(self, seconds: float, work: Callable[[], None], name: str):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[seconds, work], name=name, daemon=True)
        self._thread.start()

    def _run(self, seconds: float, work: Callable[[], None]) -> None:
        while not self._stop.wait(seconds):
            try:
                work()
            except Exception:  # the next call may do better
                _LOG.exception("%s failed", self._thread.name)

    def stop(self) -> None:
        """Ends the thread after the call that is under way."""
        self._stop.set()
        self._thread.join()


_NAMES = {START: "START", LOADING: "LOADING", AVAILABLE: "AVAILABLE", UNLOADING: "UNLOADING", END: "END"}
